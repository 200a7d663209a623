"""The engine of vLLM: cached tokens and prompts -> answers, in the order of the queries."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import fields
from io import StringIO
from itertools import groupby, islice
from typing import Any

import torch
from transformers import GenerationConfig

from prunesid_cli.errors import CacheError, ModelError, PruneSIDError, UsageError, name_item
from prunesid_cli.integrations.vllm.mrope_models import PLACES, PREFIX
from prunesid_cli.integrations.vllm.support import (
    MROPE_CLASSES,
    check_generation,
    check_model,
    check_packages,
)
from prunesid_cli.models.loading.checkpoint import first_line
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.schema import is_complete, require_json
from prunesid_cli.pipeline.query import Query, Reply
from prunesid_cli.pipeline.session import Session
from prunesid_cli.runtime.captured_stderr import captured_stderr
from prunesid_cli.text import did_you_mean
from prunesid_cli.tokencache import read_tokens
from prunesid_cli.types import Answer, Generation, Prompt, TokenSet

logger = logging.getLogger(__name__)
WINDOW = 1024
"""Queries that the engine is given at a time. It batches them itself, and idles at the end of each window."""
ARGS_HINT = "see the arguments of vllm.LLM, which --engine-args takes: --engine-args gpu_memory_utilization=0.8"
MAX_RUNS = 999
"""Most runs of visual tokens of a prompt, where vLLM wants a limit."""
ENVIRONMENT = {
    # In this process, so that an interruption or an error of the engine is one of this command.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Variables of vLLM, unless they are set."""


def _load_engine(session: Session, modalities: Iterable[str], engine_args: Mapping[str, Any]) -> Any:
    """Create a `vllm.LLM`. See `VllmEngine`.

    Args:
        session: The model, and where it runs.
        modalities: What its prompts may hold: "image", "video".
        engine_args: See `VllmEngine`.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    checkpoint = session.checkpoint
    arguments: dict[str, Any] = {
        "model": str(checkpoint.location),
        "revision": checkpoint.commit,
        "dtype": session.dtype_name,
        "enable_prefix_caching": True,
        "enforce_eager": session.placement.device.type == "cpu",
        "block_size": 32,
        "skip_mm_profiling": True,
        "use_tqdm_on_load": False,
        # As `models.shared.schema` does, so that answers by a schema are the same.
        "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
        # Nothing of the vision side is loaded where vLLM can do without.
        "limit_mm_per_prompt": dict.fromkeys(modalities, 0),
    }
    if class_name := MROPE_CLASSES.get(checkpoint.model_type):
        if checkpoint.model_type == "qwen3_vl":  # it adds deepstack features only if images are allowed
            arguments["limit_mm_per_prompt"] |= {"image": MAX_RUNS}
        arguments |= {"enable_mm_embeds": True, "hf_overrides": {"architectures": [f"{PREFIX}{class_name}"]}}
    else:
        arguments["enable_prompt_embeds"] = True
    try:
        # What vLLM and its libraries print while they load is no message of ours.
        with captured_stderr() as printed, redirect_stderr(StringIO()) as logged:
            from vllm import LLM

            return LLM(**(arguments | dict(engine_args)))
    except Exception as error:  # of any kind: an argument, the checkpoint, memory, a kernel
        raise _load_error(checkpoint.name, error) from error
    finally:
        for line in [*logged.getvalue().splitlines(), *printed]:
            logger.debug("%s", line)


def _load_error(name: str, error: Exception) -> PruneSIDError:
    """What an error of vLLM means that loads a model."""
    text = str(error)
    if isinstance(error, TypeError) and (unknown := re.search(r"unexpected keyword argument '(\w+)'", text)):
        from vllm.engine.arg_utils import EngineArgs

        known = [field.name for field in fields(EngineArgs)]
        hint = did_you_mean(unknown[1], known, "see the arguments of vllm.LLM")
        return UsageError(f"--engine-args: vLLM has no argument {unknown[1]}", hint)
    # Errors of arguments begin with their number. The name of the argument and what is wrong with it follow.
    if wrong := re.search(r"validation errors? for \w+\n(\w+)\n +(?:Value error, )?(.{,200}?)(?: \[type=|\n|$)", text):
        return UsageError(f"--engine-args {wrong[1]}: {wrong[2]}", "see the arguments of vllm.LLM")
    reason = re.search(r"^ *Value error, (.{,300})", text, re.MULTILINE)
    return ModelError(f"vLLM cannot load {name}: {reason[1] if reason else first_line(error)}", ARGS_HINT)


class VllmEngine:
    """A language model that vLLM runs.

    Args:
        session: The model, and where it runs.
        generation: How to decode.
        engine_args: Arguments of `vllm.LLM`, which go before those that are chosen here.

    Attributes:
        language: The model's language half without its layers, which makes the prompts.
        usage: What was saved, in words, after the first window.

    Raises:
        UnsupportedModel: vLLM would give other answers for this type of model.
        UsageError: It would for these settings, or an argument is wrong.
        ModelError: Packages do not go together, or vLLM cannot load the model.
    """

    def __init__(self, session: Session, generation: Generation, engine_args: Mapping[str, Any]) -> None:
        checkpoint, self.generation = session.checkpoint, generation
        check_model(checkpoint)
        check_packages()
        language = session.load_language(has_layers=False)
        assert isinstance(language, BaseLanguageHalf)
        self.language = language
        settings: GenerationConfig = language.model.generation_config
        check_generation(generation, settings.to_dict())
        self.stop_ids = language.stop_ids
        self.num_prompt_tokens, self.num_cached_tokens, self.usage = 0, 0, list[str]()
        self.is_mrope = checkpoint.model_type in MROPE_CLASSES
        if self.is_mrope:
            self.merge_size = language.model.config.vision_config.spatial_merge_size
        self.engine = _load_engine(session, language.modalities, engine_args)
        self.max_length: int = self.engine.model_config.max_model_len

    def answer(self, queries: Iterable[Query]) -> Iterator[list[Reply]]:
        """Answer prompts from cached tokens.

        Args:
            queries: Prompts about items. Queries about one item follow each other.

        Yields:
            The replies to each window of queries. An item that cannot be read, and a prompt that is too long, have an
            error in their replies.
        """
        source = iter(queries)
        while window := list(islice(source, WINDOW)):
            yield self._answer_window(window)

    def embed(self, prompt: str, items: Sequence[TokenSet]) -> Prompt:
        """Build a prompt with its kept tokens. See `LanguageHalf.embed`.

        Raises:
            CacheError: The prompt and its answer may be too long, for which vLLM would stop all prompts of a window.
        """
        embedded, new_tokens = self.language.embed(prompt, items), self.generation.max_new_tokens
        num_tokens = len(embedded.ids)
        if num_tokens + new_tokens > self.max_length:
            problem = (
                f"a prompt of {num_tokens} tokens and up to {new_tokens} for its answer: more than {self.max_length}"
            )
            hint = f"--engine-args max_model_len={num_tokens + new_tokens}, or fewer --max-new-tokens"
            raise CacheError(problem, hint)
        return embedded

    def generate(self, prompts: Sequence[Prompt], generation: Generation) -> list[Answer]:
        """Answer prompts. See `LanguageHalf.generate`."""
        from vllm import SamplingParams
        from vllm.sampling_params import StructuredOutputsParams

        sampling = SamplingParams(
            temperature=0, max_tokens=generation.max_new_tokens, stop_token_ids=self.stop_ids, detokenize=False
        )
        if generation.schema:
            sampling.structured_outputs = StructuredOutputsParams(json=generation.schema, disable_any_whitespace=True)
        requests = [self._request(prompt) for prompt in prompts]
        outputs = self.engine.generate(requests, sampling, use_tqdm=False) if requests else []
        answers = [self._read_answer(output, bool(generation.schema)) for output in outputs]
        share = self.num_cached_tokens / max(self.num_prompt_tokens, 1)
        cache = self.engine.llm_engine.vllm_config.cache_config
        self.usage[:] = [
            f"vLLM: {share:.0%} of {self.num_prompt_tokens:,} prompt tokens were read before",
            f"memory for {cache.num_gpu_blocks * cache.block_size:,} tokens",
        ]
        return answers

    def _answer_window(self, window: list[Query]) -> list[Reply]:
        start = time.perf_counter()
        asked, results = list[tuple[Query, Prompt]](), dict[int, Answer | PruneSIDError]()
        for _, group in groupby(window, lambda query: query.item.source):
            item_queries = list(group)
            first = item_queries[0]
            try:
                tokens = next(read_tokens(first.shard, [first.item]))
                self.language.check_item(tokens)
            except PruneSIDError as error:
                results |= {query.number: name_item(first.item.source, error) for query in item_queries}
                continue
            for query in item_queries:
                try:
                    asked.append((query, self.embed(query.prompt, [tokens])))
                except PruneSIDError as error:
                    results[query.number] = name_item(first.item.source, error)
        answers = self.generate([prompt for _, prompt in asked], self.generation)
        for (query, _), answer in zip(asked, answers, strict=True):
            try:
                results[query.number] = require_json(answer, self.generation)
            except PruneSIDError as error:
                results[query.number] = name_item(query.item.source, error)
        ms = (time.perf_counter() - start) * 1000 / len(window)
        replies = []
        for query in window:
            result = results[query.number]
            if isinstance(result, PruneSIDError):
                replies.append(Reply(query, None, ms, result))
            else:
                replies.append(Reply(query, result, ms))
        return replies

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        """A prompt as vLLM takes it."""
        features, ids = prompt.features.cpu(), prompt.ids
        if not self.is_mrope:
            embeds = features.new_zeros(len(ids), features.shape[-1])
            embeds[prompt.visual] = features
            return {
                "prompt_token_ids": ids.tolist(),
                "prompt_is_token_ids": (~prompt.visual).tolist(),
                "prompt_embeds": embeds,
            }
        # Each run of visual tokens is an image; a word stands before it and after it.
        assert prompt.positions is not None
        edges = torch.diff(prompt.visual.int(), prepend=torch.zeros(1), append=torch.zeros(1))
        places, grids, is_read = [], [], ~prompt.visual
        for begin, end in zip((edges == 1).nonzero().flatten(), (edges == -1).nonzero().flatten(), strict=True):
            origin = prompt.positions[0, begin - 1] + 1
            advance = (prompt.positions[0, end] - origin).expand(int(end - begin), 1)
            places.append(torch.cat([(prompt.positions[:, begin:end] - origin).T, advance], 1))
            grids.append([1, self.merge_size, self.merge_size * int(end - begin)])
            is_read[begin] = True
        image_id = self.language.modalities["image"]
        return {
            "prompt_token_ids": ids.masked_fill(prompt.visual, image_id)[is_read].tolist(),
            "multi_modal_data": {
                "image": {
                    "image_embeds": features,
                    "image_grid_thw": torch.tensor(grids),
                    PLACES: torch.cat(places),
                }
            },
        }

    def _read_answer(self, output: Any, by_schema: bool) -> Answer:
        """An answer of vLLM, decoded as the built-in engine does."""
        ids = list(output.outputs[0].token_ids)
        length = next((number for number, token in enumerate(ids) if token in self.stop_ids), len(ids))
        self.num_prompt_tokens += len(output.prompt_token_ids)
        self.num_cached_tokens += output.num_cached_tokens or 0
        text = self.language.tokenizer.decode(ids[:length], skip_special_tokens=True)
        return Answer(text.strip(), len(output.prompt_token_ids), length, is_json=by_schema and is_complete(text))
