"""The model class that lmms-eval runs. It answers requests by the same halves as every command."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm  # type: ignore[import-untyped]

from prunesid_cli.errors import ModelError, PruneSIDError, UsageError
from prunesid_cli.integrations.lmms_eval.arguments import Value, load
from prunesid_cli.integrations.lmms_eval.requests import Request, parse_requests
from prunesid_cli.integrations.lmms_eval.vision_cache import Counts, VisionCache
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom

logger = logging.getLogger(__name__)


class PruneSID(lmms):
    """`--model prunesid`. The arguments are those of `arguments.ARGUMENTS`.

    Several processes, as started by `accelerate launch`, answer a part of the requests each, on a GPU of their own.
    """

    is_simple = True

    def __init__(self, **arguments: Value) -> None:
        super().__init__()
        with _hints_in_messages():
            self.loaded = load(arguments)
        self.vision_cache = VisionCache(self.loaded.pruner, self.loaded.batch_size)
        self._ignored_settings = set[tuple[str, str]]()

    @property
    def device(self) -> str:
        """Where lmms-eval counts the requests of several processes."""
        return self.loaded.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer all requests of a run, in batches of requests with the same settings."""
        results = list[GenerationResult]()
        with _hints_in_messages():
            parsed = parse_requests(requests, self.task_dict, self._warn_of_ignored_setting)
            counts = self.vision_cache.plan(parsed)
            # disable=None: no bar unless stderr is a terminal.
            with tqdm(total=len(parsed), desc="asking", leave=False, disable=None) as bar:
                for batch in _batches(parsed, self.loaded.batch_size):
                    results += run_in_halves_on_oom(lambda part: self._answer(part, counts), batch, _raise_too_large)
                    bar.update(len(batch))
        return results

    def _answer(self, batch: Sequence[Request], counts: Counts) -> list[GenerationResult]:
        language, task_generation = self.loaded.language, batch[0].task_generation
        token_sets = self.vision_cache.token_sets_of(batch, counts)
        prompts = [
            language.embed(request.prompt(len(items)), items) for request, items in zip(batch, token_sets, strict=True)
        ]
        return [
            GenerationResult(
                task_generation.truncate(answer.text), TokenCounts(answer.prompt_tokens, answer.new_tokens)
            )
            for answer in language.generate(prompts, task_generation.generation)
        ]

    def _warn_of_ignored_setting(self, task: str, setting: str) -> None:
        if (task, setting) not in self._ignored_settings:
            self._ignored_settings.add((task, setting))
            logger.warning("%s: the setting %s has no effect", task, setting)

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        """Not supported."""
        _refuse(requests, "asks how likely given answers are", "choose a task that generates: lmms-eval tasks list")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        """Not supported."""
        _refuse(requests, "asks in several rounds", "choose a task of single prompts")


def _batches(requests: Sequence[Request], batch_size: int) -> Iterator[list[Request]]:
    """Batches of consecutive requests with equal settings. Sampled answers are generated one by one: in a batch, each
    would depend on the others."""
    for task_generation, group in groupby(requests, lambda request: request.task_generation):
        equal_requests = list(group)
        size = 1 if task_generation.generation.temperature > 0 else batch_size
        for start in range(0, len(equal_requests), size):
            yield equal_requests[start : start + size]


def _raise_too_large(request: Request) -> NoReturn:
    raise ModelError(f"{request.location}: not enough memory for one prompt", "keep less, or give device=cpu")


def _refuse(instances: Sequence[Instance], what: str, hint: str) -> NoReturn:
    tasks = ", ".join(sorted({instance.task_name for instance in instances}))
    with _hints_in_messages():
        raise UsageError(f"{tasks} {what}, which --model prunesid does not answer", hint)


@contextmanager
def _hints_in_messages() -> Iterator[None]:
    """Appends the hint of an error to its message: lmms-eval prints only messages."""
    try:
        yield
    except PruneSIDError as error:
        raise type(error)(f"{error.problem}; {error.hint}" if error.hint else error.problem) from error
