"""Advice from an evaluation: kinds of questions that suffer, and the smallest budget that reaches a target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prunesid_cli.evaluate.records import Record
from prunesid_cli.evaluate.report import SettingSummary, Target, measure_name
from prunesid_cli.text import plural

MIN_QUESTIONS = 20
"""Questions that a kind must have for a statement about it."""
DEFAULT_TARGET = 0.95
"""Share of the unpruned accuracy below which a kind suffers, if no target is given."""
LOOK_AT_UNPRUNED = "look at its answers: --keep all --out answers.jsonl"
TEXT_SUFFERS_FIRST = "small things that only a few tokens show, as text, suffer first: look at their kind"


def find_warnings(
    summaries: Sequence[SettingSummary], records: Sequence[Record], target: Target | None
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
        kinds = suffering_kinds(summary, records, target.share if target else DEFAULT_TARGET)
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


def advise_budgets(summaries: Sequence[SettingSummary], records: Sequence[Record], target: Target) -> Iterator[str]:
    """Yield, for each method, the smallest budget that is certain to reach the target, or what is known instead."""
    unpruned, *pruned = summaries
    what = "accuracy" if measure_name(records) == "accuracy" else "answers"
    wanted = f"{target.confidence:.0%} sure to keep {target.share:.0%} of the unpruned {what}"
    num_records = plural(len(records), "record")
    for method in dict.fromkeys(summary.setting.method for summary in pruned):
        tried = sorted((s for s in pruned if s.setting.method == method), key=lambda summary: summary.kept)
        certain = [summary for summary in tried if is_certain(summary, target)]
        reaching = [summary for summary in tried if (summary.accuracy.share or 0) >= target.share]
        if certain:
            best = certain[0]
            yield (
                f"{method}: --keep {best.setting.keep} is {_sure(best.accuracy.confidence or 1)} to keep "
                f"{target.share:.0%} of the unpruned {what} {_estimate(best, records)}"
            )
            continue
        if not reaching:
            yield f"{method}: no budget below {unpruned.kept:,.0f} tokens keeps {target.share:.0%}, by {num_records}"
            continue
        yield f"{method}: {num_records} are too few for a budget that is {wanted}"
        best = reaching[0]
        confidence = best.accuracy.confidence
        sure = "too few records to say how sure" if confidence is None else _sure(confidence)
        yield f"the smallest that may: --keep {best.setting.keep}, {sure} {_estimate(best, records)}"
        if best.num_needed:
            num_more = best.num_needed - len(records)
            more = f"about {num_more:,} more" if num_more > 0 else "a few more"
            yield f"if other records are alike, {more} would make it {target.confidence:.0%} sure"


def is_certain(summary: SettingSummary, target: Target) -> bool:
    """Whether a setting reaches the target with the wanted confidence. One that keeps everything does."""
    return summary.retention >= 1 or (summary.accuracy.confidence or 0) >= target.confidence


def _sure(confidence: float) -> str:
    """A bootstrap in which every draw reaches the target is no proof."""
    return "over 99% sure" if confidence > 0.99 else f"{confidence:.0%} sure"


def _estimate(summary: SettingSummary, records: Sequence[Record]) -> str:
    changed = f"{summary.num_changed:,} of {plural(len(records), 'answer')} changed"
    return f"({changed}; the estimate is {summary.accuracy.share or 0:.1%})"
