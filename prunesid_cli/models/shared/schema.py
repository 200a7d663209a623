"""Answers in JSON of a given schema: at each token, the model chooses among those with which such JSON can continue.

llguidance computes which tokens these are. White space between JSON's signs is fixed, so an answer is one line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from prunesid_cli.errors import ModelError, UsageError
from prunesid_cli.types import Answer, Generation

DEFAULTS: Any = {"whitespace_flexible": False}
"""Options of llguidance."""

SENTENCEPIECE_DECODER = {
    "type": "Sequence",
    "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}],
}
"""What transformers 5 calls Metaspace, in terms that llguidance knows."""


def check_schema(text: str) -> str:
    """Check a JSON schema.

    Returns:
        The schema in one line.

    Raises:
        ModelError: llguidance is not installed.
        UsageError: The text is no schema, or one that llguidance does not know.
    """
    if find_spec("llguidance") is None:
        raise ModelError("--schema needs the package llguidance", "pip install 'prunesid[schema]'")
    from llguidance import LLMatcher

    try:
        schema = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--schema is not JSON: {error}", 'such as {"type": "object", "properties": ...}') from error
    if not isinstance(schema, dict):
        raise UsageError("--schema is not a JSON object", 'such as {"type": "object", "properties": ...}')
    if problem := LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema, defaults=DEFAULTS)):
        raise UsageError(f"--schema: {problem.splitlines()[0]}", "see https://json-schema.org")
    return json.dumps(schema)


def is_complete(text: str) -> bool:
    """Whether an answer by a schema was not cut."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def require_json(answer: Answer, generation: Generation) -> Answer:
    """Return an answer, unless a schema asked for JSON and it is none.

    Raises:
        ModelError: It was cut.
    """
    if generation.schema and not answer.is_json:
        problem = f"the answer was cut after {answer.new_tokens} tokens, before its JSON ended: ...{answer.text[-30:]}"
        more = f"--max-new-tokens {2 * generation.max_new_tokens}"
        raise ModelError(problem, f"more tokens: {more}; or bound the schema: minimum, maximum, maxLength, maxItems")
    return answer


@lru_cache(maxsize=1)
def _read_vocabulary(tokenizer: Any, num_tokens: int, stop_ids: tuple[int, ...]) -> Any:
    """A tokenizer as llguidance knows it, which is made once: all tokens are read.

    Args:
        tokenizer: The tokenizer.
        num_tokens: Scores that the model gives, which may be more than the tokenizer has tokens.
        stop_ids: The ids that end an answer.

    Raises:
        UsageError: llguidance does not know this kind of tokenizer.
    """
    from llguidance import LLTokenizer

    if not tokenizer.is_fast:
        raise UsageError("--schema: tokenizers written in Python are not supported", "leave it out")
    settings = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    if (settings["decoder"] or {}).get("type") == "Metaspace":
        settings["decoder"] = SENTENCEPIECE_DECODER
    try:
        return LLTokenizer(json.dumps(settings), n_vocab=max(num_tokens, len(tokenizer)), eos_token=list(stop_ids))
    except ValueError as error:
        raise UsageError(f"--schema: the tokenizer of this model is not supported: {error}", "leave it out") from error


class SchemaProcessor(LogitsProcessor):
    """Leaves the scores of allowed tokens as they are, and makes all others minus infinity.

    Args:
        schema: The schema, as `check_schema` returns it.
        tokenizer: The model's tokenizer.
        stop_ids: The ids that end an answer.
    """

    def __init__(self, schema: str, tokenizer: Any, stop_ids: Sequence[int]) -> None:
        self.schema, self.tokenizer, self.stop_ids = schema, tokenizer, tuple(stop_ids)
        self.matchers: list[Any] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        from llguidance import LLMatcher
        from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

        num_rows, num_tokens = scores.shape
        if self.matchers:
            for matcher, token in zip(self.matchers, input_ids[:, -1].tolist(), strict=True):
                if not matcher.is_stopped():
                    matcher.consume_token(token)
        else:
            grammar = LLMatcher.grammar_from_json_schema(self.schema, defaults=DEFAULTS)
            vocabulary = _read_vocabulary(self.tokenizer, num_tokens, self.stop_ids)
            self.matchers = [LLMatcher(vocabulary, grammar) for _ in range(num_rows)]
            self.num_tokens = vocabulary.vocab_size
        masks = allocate_token_bitmask(num_rows, self.num_tokens)
        for row, matcher in enumerate(self.matchers):
            if matcher.is_error():
                raise RuntimeError(matcher.get_error())
            if not matcher.is_stopped():
                fill_next_token_bitmask(matcher, masks, row)
        allowed = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, :num_tokens].astype(bool)
        for row, matcher in enumerate(self.matchers):
            if matcher.is_stopped():
                allowed[row] = np.isin(np.arange(num_tokens), self.stop_ids)
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)
