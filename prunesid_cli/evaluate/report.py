"""Report of an evaluation: a summary of each setting, as a table and as JSON records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from prunesid_cli.evaluate.metrics import first_yes_no, normalized_words, word_f1
from prunesid_cli.evaluate.records import Record
from prunesid_cli.evaluate.results import PruningSetting, Results, ScoredAnswer
from prunesid_cli.evaluate.statistics import (
    Detection,
    PairedDifference,
    RelativeAccuracy,
    Scores,
    detection,
    paired_difference,
    records_needed,
    relative_accuracy,
)


@dataclass(frozen=True)
class SettingSummary:
    """How one setting did.

    Attributes:
        setting: The setting.
        kept: Mean number of visual tokens after pruning.
        retention: Share of the visual tokens that were kept.
        accuracy: Accuracy relative to the unpruned model; agreement with it where no answers are expected.
        kinds: The same by kind of question.
        same_answer: Share of answers with the words of the unpruned answer.
        word_f1: Mean F1 score of the words of the answer and of the unpruned answer.
        divergence: Mean divergence of the first token in nats; None if it was not measured.
        detection: Precision and recall of yes; None if there are no such questions.
        num_changed: Answers with other words than the unpruned answer.
        num_lost: Answers with a lower score than the unpruned answer, where an answer is expected.
        num_gained: Answers with a higher score, likewise.
        num_needed: Records from which the target would be certain, about; None without a target, or if none would do.
    """

    setting: PruningSetting
    kept: float
    retention: float
    accuracy: RelativeAccuracy
    kinds: dict[str, RelativeAccuracy]
    same_answer: float
    word_f1: float
    divergence: float | None
    detection: Detection | None
    num_changed: int = 0
    num_lost: int = 0
    num_gained: int = 0
    num_needed: int | None = None


@dataclass(frozen=True)
class Target:
    """What a budget should keep: a share of the unpruned accuracy, and how sure that should be."""

    share: float
    confidence: float = 0.95


def summarize(
    settings: Sequence[PruningSetting], records: Sequence[Record], results: Results, target: Target | None = None
) -> list[SettingSummary]:
    """Summarize settings over the records that were answered under all of them.

    A record without expected answers scores 1 if its answer is that of the unpruned model.

    Args:
        settings: The settings; the first one is without pruning.
        records: The records.
        results: The answers.
        target: What should be reached.

    Returns:
        A summary of each setting; empty if no record was answered under all settings.
    """
    answered = answered_under_all(settings, records, results)
    if not answered:
        return []
    unpruned = [results.answers[record.key, str(settings[0])] for record in answered]
    summaries = []
    for setting in settings:
        answers = [results.answers[record.key, str(setting)] for record in answered]
        summaries.append(_summarize_setting(setting, answered, answers, unpruned, target))
    return summaries


def answered_under_all(settings: Sequence[PruningSetting], records: Sequence[Record], results: Results) -> list[Record]:
    """Return the records that were answered under all settings."""
    return [record for record in records if all((record.key, str(setting)) in results.answers for setting in settings)]


def compare_methods(
    settings: Sequence[PruningSetting], records: Sequence[Record], results: Results
) -> list[tuple[PruningSetting, PairedDifference]]:
    """Compare each setting with the first one of the same budget, on the same questions; arguments as `summarize`."""
    answered = answered_under_all(settings, records, results)
    media, firsts, compared = [record.media for record in answered], dict[str, Scores](), []
    unpruned = [results.answers[record.key, str(settings[0])] for record in answered]
    for setting in settings:
        scores = _scores([results.answers[record.key, str(setting)] for record in answered], unpruned)
        first = firsts.setdefault(setting.keep, scores)
        if first is not scores:
            compared.append((setting, paired_difference(scores, first, media)))
    return compared


def _summarize_setting(
    setting: PruningSetting,
    records: Sequence[Record],
    answers: Sequence[ScoredAnswer],
    unpruned: Sequence[ScoredAnswer],
    target: Target | None,
) -> SettingSummary:
    unpruned_scores = _scores(unpruned, unpruned)
    scores = unpruned_scores if answers == unpruned else _scores(answers, unpruned)

    def accuracy(rows: Sequence[int]) -> RelativeAccuracy:
        ours, reference = scores[rows], unpruned_scores[rows]
        media = [records[row].media for row in rows]
        ours = reference if scores is unpruned_scores else ours
        return relative_accuracy(ours, reference, media, target.share if target else None)

    rows_by_kind: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        if record.kind:
            rows_by_kind.setdefault(record.kind, []).append(row)
    pairs = [(answer.answer, reference.answer) for answer, reference in zip(answers, unpruned, strict=True)]
    is_scored = np.array([bool(record.answers) for record in records])
    is_same = [normalized_words(ours) == normalized_words(theirs) for ours, theirs in pairs]
    divergences = [answer.divergence for answer in answers if answer.divergence is not None]
    yes_no = [
        (first_yes_no(answer.answer), first_yes_no(record.answers[0]))
        for answer, record in zip(answers, records, strict=True)
        if record.metric == "yesno" and record.answers
    ]
    return SettingSummary(
        setting=setting,
        kept=float(np.mean([answer.kept for answer in answers])),
        retention=sum(answer.kept for answer in answers) / max(1, sum(answer.tokens for answer in answers)),
        accuracy=accuracy(range(len(records))),
        kinds={kind: accuracy(rows) for kind, rows in rows_by_kind.items()},
        same_answer=float(np.mean(is_same)),
        word_f1=float(np.mean([word_f1(ours, theirs) for ours, theirs in pairs])),
        divergence=float(np.mean(divergences)) if divergences else None,
        detection=detection(*zip(*yes_no, strict=True)) if yes_no else None,
        num_changed=is_same.count(False),
        num_lost=int((is_scored & (scores < unpruned_scores)).sum()),
        num_gained=int((is_scored & (scores > unpruned_scores)).sum()),
        num_needed=records_needed(
            scores, unpruned_scores, [record.media for record in records], target.share, target.confidence
        )
        if target
        else None,
    )


def can_be_certain(unpruned: PruningSetting, records: Sequence[Record], results: Results, target: Target) -> bool:
    """Whether there are enough records to be certain of a setting that changes no answer."""
    answered = [record for record in records if (record.key, str(unpruned)) in results.answers]
    answers = [results.answers[record.key, str(unpruned)] for record in answered]
    scores = _scores(answers, answers)
    if not answered:
        return False
    accuracy = relative_accuracy(scores.copy(), scores, [record.media for record in answered], target.share)
    return (accuracy.confidence or 0) >= target.confidence


def _scores(answers: Sequence[ScoredAnswer], unpruned: Sequence[ScoredAnswer]) -> Scores:
    scores = []
    for answer, reference in zip(answers, unpruned, strict=True):
        if answer.score is None:
            scores.append(float(normalized_words(answer.answer) == normalized_words(reference.answer)))
        else:
            scores.append(answer.score)
    return np.array(scores)


def measure_name(records: Sequence[Record]) -> str:
    """Return what scores measure: accuracy, or agreement with the unpruned model if no record expects an answer."""
    return "accuracy" if any(record.answers for record in records) else "agreement"


def make_table(summaries: Sequence[SettingSummary], measure: str) -> list[list[str]]:
    """Return the cells of a table: a header, and a row for each setting."""
    kinds = list(summaries[0].kinds) if len(summaries[0].kinds) > 1 else []
    has_divergence = all(summary.divergence is not None for summary in summaries)
    interval = "95% interval"
    header = ["setting", "tokens", "kept", measure, interval, "of unpruned", interval, *kinds, "same answer"]
    rows = [header + ["KL of first token"] * has_divergence]
    for summary in summaries:
        accuracy = summary.accuracy
        row = [
            str(summary.setting),
            f"{summary.kept:,.0f}",
            f"{summary.retention:.1%}",
            f"{accuracy.accuracy:.3f}",
            format_interval(accuracy),
            "-" if accuracy.share is None else f"{accuracy.share:.1%}",
            format_share_interval(accuracy),
            *(f"{summary.kinds[kind].accuracy:.3f}" for kind in kinds),
            f"{summary.same_answer:.1%}",
        ]
        if has_divergence:
            row.append(f"{summary.divergence:.4f} nats")
        rows.append(row)
    return rows


def format_interval(accuracy: RelativeAccuracy) -> str:
    """Return the interval of an accuracy."""
    return "too few" if accuracy.interval is None else "{:.3f} to {:.3f}".format(*accuracy.interval)


def format_share_interval(accuracy: RelativeAccuracy) -> str:
    """Return the interval of the share of the unpruned accuracy."""
    if accuracy.low is not None:
        return f"{accuracy.low:.1%} to {accuracy.high:.1%}"
    return "too few" if accuracy.interval is None else "-"


def to_record(summary: SettingSummary) -> dict[str, Any]:
    """Return the JSON record of a setting."""
    return {
        "setting": str(summary.setting),
        "kept": summary.kept,
        "retention": summary.retention,
        "marks": _accuracy_to_record(summary.accuracy),
        "kinds": {kind: _accuracy_to_record(accuracy) for kind, accuracy in summary.kinds.items()},
        "same": summary.same_answer,
        "changed": summary.num_changed,
        "lost": summary.num_lost,
        "gained": summary.num_gained,
        "likeness": summary.word_f1,
        "divergence": summary.divergence,
        "detection": summary.detection and asdict(summary.detection),
        "keep": summary.setting.keep,
        "method": summary.setting.method,
    }


def _accuracy_to_record(accuracy: RelativeAccuracy) -> dict[str, float | tuple[float, float] | None]:
    return {
        "accuracy": accuracy.accuracy,
        "count": accuracy.count,
        "interval": accuracy.interval,
        "share": accuracy.share,
        "low": accuracy.low,
        "high": accuracy.high,
        "sure": accuracy.confidence,
    }
