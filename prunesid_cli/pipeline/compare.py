"""Answers one prompt with and without pruning. The vision tower runs once for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.pipeline.ask import answer_items, encode_media, keep_tokens
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.runtime.stopwatch import Stopwatch
from prunesid_cli.selection.budget import Budget
from prunesid_cli.text import stage_milliseconds
from prunesid_cli.types import Answer, Generation, TokenSet


@dataclass(frozen=True)
class Outcome:
    """An answer and what it took.

    Attributes:
        answer: The answer.
        items: The kept tokens that it was given from.
        seconds: Seconds of each stage.
        max_new_tokens: Tokens that the answer could have had.
    """

    answer: Answer
    items: Sequence[TokenSet]
    seconds: Mapping[str, float]
    max_new_tokens: int

    @property
    def total(self) -> int:
        """Visual tokens that the stock model reads."""
        return sum(item.layout.total for item in self.items)

    @property
    def kept(self) -> int:
        """Visual tokens that were kept."""
        return sum(item.kept for item in self.items)

    @property
    def record(self) -> dict[str, Any]:
        """As `ask --json` prints it."""
        return {
            **self.answer.record,
            "kept": self.kept,
            "prompt_tokens": self.answer.prompt_tokens,
            "new_tokens": self.answer.new_tokens,
            "cut": self.answer.new_tokens == self.max_new_tokens,
            **stage_milliseconds(self.seconds),
        }


def compare(
    pruner: Pruner, language: LanguageHalf, media: Sequence[Media], prompt: str, generation: Generation
) -> tuple[Outcome, Outcome]:
    """Answers a prompt from the kept tokens, and from all of them.

    Returns:
        The outcome with pruning, and the stock model's. The seconds of the vision tower count for both.
    """
    language.check_prompt(prompt, len(media))
    encoded = encode_media(pruner, media)

    def answer(budget: Budget, max_new_tokens: int) -> Outcome:
        own = replace(pruner, budget=budget, stopwatch=Stopwatch())
        decoding = replace(generation, max_new_tokens=max_new_tokens)
        items = keep_tokens(own, media, encoded)
        result = answer_items(own, language, items, prompt, decoding)
        return Outcome(result, items, pruner.stopwatch.seconds | own.stopwatch.seconds, max_new_tokens)

    answer(pruner.budget, 1)  # a warm-up: the first answer of a process is slower
    limit = generation.max_new_tokens
    return answer(pruner.budget, limit), answer(Budget.parse("all"), limit)
