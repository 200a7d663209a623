"""What a run of evaluate tells: a row for each setting, as a table, as JSON, and in words where a kind suffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.evaluate.metrics import likeness, said_yes_no, words
from prunesid_cli.evaluate.records import Record
from prunesid_cli.evaluate.results import Results, Said, Setting
from prunesid_cli.evaluate.statistics import Detection, Relative, by_kind, detection, itself, relative

ENOUGH = 20
"""Questions of a kind from which on something is said of it alone."""


@dataclass(frozen=True)
class Row:
    """How one setting did.

    kept        visual tokens on average; `retention`: of all
    marks       accuracy, or agreement where nothing was expected, and its share of the unpruned model's
    same        how often the answer is the unpruned one; `likeness`: of their words
    divergence  of first tokens, in nats on average, where it was measured
    detection   of yes, where that is asked
    """

    setting: Setting
    kept: float
    retention: float
    marks: Relative
    kinds: dict[str, Relative]
    same: float
    likeness: float
    divergence: float | None
    detection: Detection | None


def rows_of(
    settings: Sequence[Setting], records: Sequence[Record], results: Results, target: float | None = None
) -> list[Row]:
    """A row for each setting, over the records that all settings answered; the first setting is that without pruning.

    A record that expects no answer counts by whether its answer is that of the unpruned model.
    """
    done = [one for one in records if all((one.key, str(setting)) in results.said for setting in settings)]
    if not done:
        return []
    base = [results.said[one.key, str(settings[0])] for one in done]
    own = np.array([_mark(said, said) for said in base])
    return [_row(setting, done, results, base, own, target) for setting in settings]


def _row(
    setting: Setting, done: Sequence[Record], results: Results, base: Sequence[Said], own: Any, target: float | None
) -> Row:
    said = [results.said[one.key, str(setting)] for one in done]
    pairs = list(zip(said, base, strict=True))
    marks, kinds = np.array([_mark(*pair) for pair in pairs]), [one.kind for one in done]
    named, about, is_base = np.array(kinds), [one.media for one in done], said == base

    def beside(some: NDArray[np.bool_]) -> Relative:
        if is_base:
            return itself(own[some], target)
        return relative(marks[some], own[some], [one for one, is_in in zip(about, some, strict=True) if is_in], target)

    yes_no = [(said_yes_no(s.answer), said_yes_no(r.answers[0])) for s, r in zip(said, done, strict=True) if _asks(r)]
    far = [one.divergence for one in said if one.divergence is not None]
    return Row(
        setting,
        float(np.mean([one.kept for one in said])),
        sum(one.kept for one in said) / max(1, sum(one.tokens for one in said)),
        beside(np.ones(len(done), bool)),
        {kind: beside(named == kind) for kind in by_kind(marks, kinds) if kind},
        float(np.mean([words(a.answer) == words(b.answer) for a, b in pairs])),
        float(np.mean([likeness(a.answer, b.answer) for a, b in pairs])),
        float(np.mean(far)) if far else None,
        detection(*zip(*yes_no, strict=True)) if yes_no else None,
    )


def _mark(said: Said, base: Said) -> float:
    return float(words(said.answer) == words(base.answer)) if said.score is None else said.score


def _asks(record: Record) -> bool:
    return record.metric == "yesno" and bool(record.answers)


def measure_of(records: Sequence[Record]) -> str:
    """What marks are: right answers, or, where none is known, the unpruned model's."""
    return "accuracy" if any(one.answers for one in records) else "agreement"


def table(rows: Sequence[Row], measure: str) -> list[list[str]]:
    """The head of a table, and a line for each row."""
    kinds = list(rows[0].kinds) if len(rows[0].kinds) > 1 else []
    far = ["KL of first token"] * all(row.divergence is not None for row in rows)
    lines = [["setting", "tokens", "kept", measure, "of unpruned", "95 %", *kinds, "same answer", *far]]
    for row in rows:
        marks = row.marks
        interval = "-" if marks.low is None else f"{marks.low:.1%} to {marks.high:.1%}"
        cells = [
            str(row.setting),
            f"{row.kept:,.0f}",
            f"{row.retention:.1%}",
            f"{marks.accuracy:.3f}",
            "-" if marks.share is None else f"{marks.share:.1%}",
        ]
        cells += [interval, *(f"{row.kinds[kind].accuracy:.3f}" for kind in kinds), f"{row.same:.1%}"]
        lines.append([*cells, f"{row.divergence:.4f} nats"] if far else cells)
    return lines


def as_record(row: Row) -> dict[str, Any]:
    return asdict(row) | {"setting": str(row.setting), "keep": row.setting.keep, "method": row.setting.method}


def suffering(row: Row, records: Sequence[Record], target: float) -> list[str]:
    """Kinds of which it is sure, as far as the interval goes, that they do not reach the target."""
    many = {kind for kind in row.kinds if sum(one.kind == kind for one in records) >= ENOUGH}
    told = {kind: one for kind, one in row.kinds.items() if kind in many and one.high is not None}
    return [f"{kind} ({one.share:.0%})" for kind, one in told.items() if (one.high or 0) < target]
