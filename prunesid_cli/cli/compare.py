"""ask --compare: one prompt answered from the kept tokens and from all, the tower run once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from prunesid_cli.text import stage_milliseconds

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.models.base import LanguageHalf
    from prunesid_cli.pipeline.pruner import Pruner
    from prunesid_cli.types import Answer, Generation, TokenSet


@dataclass(frozen=True)
class Side:
    """An answer, what it was given from, the seconds of each stage, and how many tokens it could have had."""

    answer: Answer
    items: list[TokenSet]
    seconds: Mapping[str, float]
    most: int

    @property
    def total(self) -> int:
        return sum(item.layout.total for item in self.items)

    @property
    def kept(self) -> int:
        return sum(item.kept for item in self.items)

    @property
    def record(self) -> dict[str, Any]:
        return {
            "answer": self.answer.text,
            "kept": self.kept,
            "prompt_tokens": self.answer.prompt_tokens,
            "new_tokens": self.answer.new_tokens,
            "cut": self.answer.new_tokens == self.most,
            **stage_milliseconds(self.seconds),
        }


def compare(
    pruner: Pruner, language: LanguageHalf, media: Sequence[Media], prompt: str, generation: Generation
) -> tuple[Side, Side]:
    """As pruned, and of the stock model; the tower, which sees once for both, is in the seconds of each."""
    from prunesid_cli.pipeline.compress import answer_encoded, encode_media
    from prunesid_cli.runtime.stopwatch import Stopwatch
    from prunesid_cli.selection.budget import Budget

    language.check_prompt(prompt, len(media))
    encoded = encode_media(pruner, media)

    def side(budget: Budget, most: int) -> Side:
        own = replace(pruner, budget=budget, stopwatch=Stopwatch())
        answer, items = answer_encoded(own, language, media, encoded, prompt, replace(generation, max_new_tokens=most))
        return Side(answer, items, pruner.stopwatch.seconds | own.stopwatch.seconds, most)

    side(pruner.budget, 1)  # the first answer of a process pays for what later ones find ready
    return side(pruner.budget, generation.max_new_tokens), side(Budget.parse("all"), generation.max_new_tokens)


def table(pruned: Side, whole: Side) -> str:
    """For people, as wide as their terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table("", f"{pruned.kept / pruned.total:.1%} kept", "all", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    rows: dict[str, Callable[[Side], str]] = {
        "answer": lambda side: side.answer.text,
        "visual tokens": lambda side: f"{side.kept:,}",
        "prompt tokens": lambda side: f"{side.answer.prompt_tokens:,}",
        "answer tokens": lambda side: f"{side.answer.new_tokens:,}",
    }
    rows |= {f"{name}, ms": partial(_ms, name=name) for name in pruned.seconds} | {"all of it, ms": _ms}
    for name, value in rows.items():
        made.add_row(name, Text(value(pruned)), Text(value(whole)))
    console = Console()
    with console.capture() as captured:
        console.print(made)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _ms(side: Side, name: str | None = None) -> str:
    """Of a stage, or of all."""
    return f"{1000 * (side.seconds[name] if name else sum(side.seconds.values())):,.0f}"
