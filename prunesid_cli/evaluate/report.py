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
    RelativeAccuracy,
    Scores,
    detection,
    relative_accuracy,
    unpruned_accuracy,
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


def summarize(
    settings: Sequence[PruningSetting], records: Sequence[Record], results: Results, target: float | None = None
) -> list[SettingSummary]:
    """Summarize settings over the records that were answered under all of them.

    A record without expected answers scores 1 if its answer is that of the unpruned model.

    Args:
        settings: The settings; the first one is without pruning.
        records: The records.
        results: The answers.
        target: Share of the unpruned accuracy that should be reached.

    Returns:
        A summary of each setting; empty if no record was answered under all settings.
    """
    answered = [
        record for record in records if all((record.key, str(setting)) in results.answers for setting in settings)
    ]
    if not answered:
        return []
    unpruned = [results.answers[record.key, str(settings[0])] for record in answered]
    summaries = []
    for setting in settings:
        answers = [results.answers[record.key, str(setting)] for record in answered]
        summaries.append(_summarize_setting(setting, answered, answers, unpruned, target))
    return summaries


def _summarize_setting(
    setting: PruningSetting,
    records: Sequence[Record],
    answers: Sequence[ScoredAnswer],
    unpruned: Sequence[ScoredAnswer],
    target: float | None,
) -> SettingSummary:
    scores, unpruned_scores = _scores(answers, unpruned), _scores(unpruned, unpruned)

    def accuracy(rows: Sequence[int]) -> RelativeAccuracy:
        if answers == unpruned:
            return unpruned_accuracy(unpruned_scores[rows], target)
        return relative_accuracy(scores[rows], unpruned_scores[rows], [records[row].media for row in rows], target)

    rows_by_kind: dict[str, list[int]] = {}
    for row, record in enumerate(records):
        if record.kind:
            rows_by_kind.setdefault(record.kind, []).append(row)
    pairs = [(answer.answer, reference.answer) for answer, reference in zip(answers, unpruned, strict=True)]
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
        same_answer=float(np.mean([normalized_words(ours) == normalized_words(theirs) for ours, theirs in pairs])),
        word_f1=float(np.mean([word_f1(ours, theirs) for ours, theirs in pairs])),
        divergence=float(np.mean(divergences)) if divergences else None,
        detection=detection(*zip(*yes_no, strict=True)) if yes_no else None,
    )


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
    header = ["setting", "tokens", "kept", measure, "of unpruned", "95 %", *kinds, "same answer"]
    rows = [header + ["KL of first token"] * has_divergence]
    for summary in summaries:
        accuracy = summary.accuracy
        row = [
            str(summary.setting),
            f"{summary.kept:,.0f}",
            f"{summary.retention:.1%}",
            f"{accuracy.accuracy:.3f}",
            "-" if accuracy.share is None else f"{accuracy.share:.1%}",
            "-" if accuracy.low is None else f"{accuracy.low:.1%} to {accuracy.high:.1%}",
            *(f"{summary.kinds[kind].accuracy:.3f}" for kind in kinds),
            f"{summary.same_answer:.1%}",
        ]
        if has_divergence:
            row.append(f"{summary.divergence:.4f} nats")
        rows.append(row)
    return rows


def to_record(summary: SettingSummary) -> dict[str, Any]:
    """Return the JSON record of a setting."""
    return {
        "setting": str(summary.setting),
        "kept": summary.kept,
        "retention": summary.retention,
        "marks": _accuracy_to_record(summary.accuracy),
        "kinds": {kind: _accuracy_to_record(accuracy) for kind, accuracy in summary.kinds.items()},
        "same": summary.same_answer,
        "likeness": summary.word_f1,
        "divergence": summary.divergence,
        "detection": summary.detection and asdict(summary.detection),
        "keep": summary.setting.keep,
        "method": summary.setting.method,
    }


def _accuracy_to_record(accuracy: RelativeAccuracy) -> dict[str, float | None]:
    return {
        "accuracy": accuracy.accuracy,
        "share": accuracy.share,
        "low": accuracy.low,
        "high": accuracy.high,
        "sure": accuracy.confidence,
    }
