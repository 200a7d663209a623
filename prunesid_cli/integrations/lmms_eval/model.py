"""The model class that lmms-eval runs: requests in, answers out, by the same halves as every command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import NoReturn

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ModelError, PruneSIDError, UsageError
from prunesid_cli.integrations.lmms_eval.arguments import Value, load
from prunesid_cli.integrations.lmms_eval.requests import Asked, asked_of
from prunesid_cli.integrations.lmms_eval.vision_cache import Counts, VisionCache
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom


class PruneSID(lmms):
    """`--model prunesid`; arguments are those of `arguments.DEFAULTS`.

    Several processes, as by `accelerate launch`, each answer a part of the requests, on a GPU of their own.
    """

    is_simple = True

    def __init__(self, **arguments: Value) -> None:
        super().__init__()
        with _hinting():
            self.loaded = load(arguments)
        self.eyes = VisionCache(self.loaded.pruner, self.loaded.batch_size)
        self.told = set[tuple[str, str]]()

    @property
    def device(self) -> str:
        """Where lmms-eval counts requests of several processes."""
        return self.loaded.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answer all requests of a run, which come at once. Batches are of requests that want to be answered alike;
        sampling answers one at a time, as a batch would draw other samples."""
        with _hinting():
            asked = asked_of(requests, self.task_dict, self._ignored)
            counts = self.eyes.plan(asked)
            answers = list[GenerationResult]()
            with printer.progress("asking", len(asked), prints=False) as bar:
                for batch in _batches(asked, self.loaded.batch_size):
                    answers += run_in_halves_on_oom(lambda some: self._answer(some, counts), batch, _too_large)
                    if bar is not None:
                        bar.advance(bar.task_ids[0], len(batch))
        return answers

    def _answer(self, batch: Sequence[Asked], counts: Counts) -> list[GenerationResult]:
        language, generation = self.loaded.language, batch[0].generation
        seen = self.eyes.see(batch, counts)
        prompts = [language.embed(one.prompt(len(sets)), sets) for one, sets in zip(batch, seen, strict=True)]
        return [
            GenerationResult(generation.cut(one.text), TokenCounts(one.prompt_tokens, one.new_tokens))
            for one in language.generate(prompts, generation.generation)
        ]

    def _ignored(self, task: str, setting: str) -> None:
        if (task, setting) not in self.told:
            self.told.add((task, setting))
            printer.note(f"{task}: the setting {setting} means nothing here")

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        _refuse(requests, "asks how likely given answers are", "take a task that generates: lmms-eval tasks list")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        _refuse(requests, "asks in several rounds", "take a task of single prompts")


def _batches(asked: Sequence[Asked], size: int) -> Iterator[list[Asked]]:
    for generation, group in groupby(asked, lambda one: one.generation):
        some, most = list(group), 1 if generation.generation.temperature > 0 else size
        yield from (some[start : start + most] for start in range(0, len(some), most))


def _too_large(one: Asked) -> NoReturn:
    raise ModelError(f"{one.where}: not enough memory for one prompt", "keep less, or give device=cpu")


def _refuse(requests: Sequence[Instance], what: str, hint: str) -> NoReturn:
    tasks = ", ".join(sorted({one.task_name for one in requests}))
    with _hinting():
        raise UsageError(f"{tasks} {what}, which --model prunesid does not answer", hint)


@contextmanager
def _hinting() -> Iterator[None]:
    """lmms-eval prints what an error says, and knows no hints."""
    try:
        yield
    except PruneSIDError as error:
        raise type(error)(f"{error.problem}; {error.hint}" if error.hint else error.problem) from error
