"""What `ask` prints: answers as text, as records, or beside those without pruning; and the tokens that were saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunesid_cli.cli.notices import note_if_all_kept
from prunesid_cli.cli.terminal import printer, stdout_is_terminal
from prunesid_cli.errors import PruneSIDError
from prunesid_cli.text import escape_invisible, format_stages

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.pipeline.compare import Outcome
    from prunesid_cli.selection.budget import Budget


@dataclass
class AskReport:
    """Prints and counts answers.

    Attributes:
        used: The model and the settings, which a JSON record names.
        budget: The budget.
        prompts: All prompts.
        is_single: Whether there is one answer only.
        as_json: Whether JSON was asked for.
        seen: The share of each image or clip that the model sees.
        counts: Sums over all answers, for `usage_line`.
        seconds: Seconds of each stage.
        num_failed: Answers that could not be given.
    """

    used: dict[str, Any]
    budget: Budget
    prompts: Sequence[str]
    is_single: bool
    as_json: bool
    seen: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    num_failed: int = 0

    @property
    def prints_json(self) -> bool:
        """Whether records are printed, and no text."""
        return self.as_json or not (self.is_single or stdout_is_terminal())

    def add(self, media: Sequence[Media], prompt: str, outcome: Outcome, was_streamed: bool) -> None:
        """Prints an answer."""
        text = "" if was_streamed else outcome.answer.text
        if outcome.answer.probabilities and stdout_is_terminal():
            shares = "  ".join(f"{choice} {share:.1%}" for choice, share in outcome.answer.probabilities.items())
            text = f"{text}   ({shares})"
        if not self.is_single:
            names = ", ".join(escape_invisible(item.source) for item in media)
            text = ": ".join([names, *([escape_invisible(prompt)] if len(self.prompts) > 1 else []), text])
        self._print(media, prompt, outcome, {"tokens": outcome.total} | outcome.record, text)

    def add_comparison(self, media: Sequence[Media], pruned: Outcome, unpruned: Outcome) -> None:
        """Prints an answer beside that without pruning."""
        self.seen += [item.layout.visible_share for item in pruned.items]
        record = {"tokens": pruned.total, "pruned": pruned.record, "all": unpruned.record}
        self._print(media, self.prompts[0], pruned, record, _comparison_table(pruned, unpruned), is_styled=True)

    def _print(
        self,
        media: Sequence[Media],
        prompt: str,
        outcome: Outcome,
        record: dict[str, Any],
        text: str,
        is_styled: bool = False,
    ) -> None:
        """Prints a record or a text, and counts an outcome, which is not kept: there may be a million."""
        answer = outcome.answer
        if not self.counts["answers"]:
            note_if_all_kept(self.budget, max(item.layout.total for item in outcome.items))
        self.counts.update(answers=1, total=outcome.total, kept=outcome.kept)
        self.counts.update(prompt_tokens=answer.prompt_tokens, new_tokens=answer.new_tokens)
        self.seconds.update(outcome.seconds)
        seen = [round(item.layout.visible_share, 4) for item in outcome.items]
        record |= {"seen": seen} if min(seen) < 1 else {}
        if self.prints_json:
            printer.record({"sources": [item.source for item in media], "prompt": prompt} | self.used | record)
        else:
            printer.result(text, is_styled=is_styled)

    def fail(self, sources: Sequence[str], prompts: Sequence[str], error: PruneSIDError) -> None:
        """Prints why prompts about some images or clips are not answered."""
        self.num_failed += len(prompts)
        printer.error(error)
        if self.prints_json:
            for prompt in prompts:
                what = {"sources": list(sources), "prompt": prompt}
                printer.record(what | {"error": error.problem, "hint": error.hint})

    def usage_line(self) -> str:
        """The tokens that were saved, and the time of each stage."""
        total, kept, prompt_tokens = (self.counts[name] for name in ("total", "kept", "prompt_tokens"))
        parts = [
            f"visual tokens {total} -> {kept} ({kept / max(total, 1):.1%})",
            f"prompt {prompt_tokens + total - kept} -> {prompt_tokens} tokens",
            f"answer {self.counts['new_tokens']}",
            format_stages(self.seconds),
        ]
        return "   ".join(parts)


def _comparison_table(pruned: Outcome, unpruned: Outcome) -> str:
    """Both outcomes side by side, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", f"{pruned.kept / pruned.total:.1%} kept", "all", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    rows: dict[str, Callable[[Outcome], str]] = {
        "answer": lambda outcome: outcome.answer.text,
        "visual tokens": lambda outcome: f"{outcome.kept:,}",
        "prompt tokens": lambda outcome: f"{outcome.answer.prompt_tokens:,}",
        "answer tokens": lambda outcome: f"{outcome.answer.new_tokens:,}",
    }
    for name in pruned.seconds:
        rows[f"{name}, ms"] = lambda outcome, name=name: f"{1000 * outcome.seconds[name]:,.0f}"  # type: ignore[misc]
    rows["all of it, ms"] = lambda outcome: f"{1000 * sum(outcome.seconds.values()):,.0f}"
    for name, value in rows.items():
        cells = (Text(escape_invisible(value(outcome), keep="\n")) for outcome in (pruned, unpruned))
        table.add_row(name, *cells)
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
