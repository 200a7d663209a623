"""Advice from an evaluation: kinds of questions that suffer, and the smallest budget that reaches a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunesid_cli.evaluate.records import Record
from prunesid_cli.evaluate.report import SettingSummary, measure_name
from prunesid_cli.text import plural

MIN_QUESTIONS = 20
"""Questions that a kind must have for a statement about it."""
MIN_CONFIDENCE = 0.9
"""Confidence below which more records are recommended."""
DEFAULT_TARGET = 0.95
"""Share of the unpruned accuracy below which a kind suffers, if no target is given."""
LOOK_AT_UNPRUNED = "look at its answers: --keep all --out answers.jsonl"
TEXT_SUFFERS_FIRST = "small things that only a few tokens show, as text, suffer first: look at their kind"


def find_warnings(
    summaries: Sequence[SettingSummary], records: Sequence[Record], target: float | None
) -> Iterator[str]:
    """Yield warnings about records without expected answers, a model that is never right, and kinds that suffer."""
    num_open = sum(not record.answers for record in records)
    if 0 < num_open < len(records):
        yield (
            f"{num_open:,} of {plural(len(records), 'record')} expect no answer: in the accuracy, they count as right "
            "if the answer is the unpruned model's"
        )
    if summaries[0].accuracy.share is None:
        yield f"the unpruned model answers no record correctly, so pruning cannot be judged: {LOOK_AT_UNPRUNED}"
    for summary in summaries[1:]:
        kinds = suffering_kinds(summary, records, target or DEFAULT_TARGET)
        if kinds:
            yield f"{summary.setting}: {', '.join(kinds)} of the unpruned accuracy; {TEXT_SUFFERS_FIRST}"


def suffering_kinds(summary: SettingSummary, records: Sequence[Record], target: float) -> list[str]:
    """Return the kinds whose whole confidence interval lies below the target, with their shares."""
    kinds = []
    for kind, accuracy in summary.kinds.items():
        num_questions = sum(record.kind == kind for record in records)
        if num_questions >= MIN_QUESTIONS and accuracy.high is not None and accuracy.high < target:
            kinds.append(f"{kind} ({accuracy.share:.0%})")
    return kinds


def advise_budgets(summaries: Sequence[SettingSummary], records: Sequence[Record], target: float) -> Iterator[str]:
    """Yield, for each method, the smallest budget that reaches the target, and how certain that is."""
    unpruned, *pruned = summaries
    what = "accuracy" if measure_name(records) == "accuracy" else "answers"
    for method in dict.fromkeys(summary.setting.method for summary in pruned):
        reaching = [
            summary
            for summary in pruned
            if summary.setting.method == method and (summary.accuracy.share or 0) >= target
        ]
        if not reaching:
            yield f"{method}: no budget below {unpruned.kept:,.0f} tokens keeps {target:.0%}"
            continue
        best = min(reaching, key=lambda summary: summary.kept)
        confidence = best.accuracy.confidence or 0.0
        yield (
            f"{method}: --keep {best.setting.keep} keeps {best.accuracy.share:.1%} of the unpruned {what} "
            f"({confidence:.0%} sure that it is {target:.0%} or more, by {plural(len(records), 'record')})"
        )
        if confidence < MIN_CONFIDENCE:
            yield "more records would make this more certain; the next larger budget is safer"
