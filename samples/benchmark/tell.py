"""Write results.json as text: a README for this folder, and a section of the guide on benchmark results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

GUIDE = Path(__file__).parents[1] / "guides" / "benchmark-results.md"
BEGIN, END = "<!-- made by python -m samples.benchmark.make -->", "<!-- until here -->"
Told = dict[str, Any]


class Lead(NamedTuple):
    """By how many percentage points PruneSID is ahead of a rival at a budget, with its 95 % interval."""

    keep: str
    rival: str
    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def leads(told: Told, kind: str = "") -> list[Lead]:
    """The lead over every rival at every budget, over the questions of one kind, or over all questions."""
    return [_lead(one, told["per_kind"], kind) for one in told["duels"]]


def _lead(duel: dict[str, Any], per_kind: int, kind: str) -> Lead:
    """The lead as a difference of two shares of the same questions, with the adjusted Wald interval of Bonett and Price
    (2012). It counts one more question won and one more lost, so that it holds if few questions differ."""
    pairs = [duel["kinds"][kind]] if kind else list(duel["kinds"].values())
    ours, theirs = (sum(side) for side in zip(*pairs, strict=True))
    asked = per_kind * len(pairs)
    middle = (ours - theirs) / (asked + 2)
    error = 1.96 * math.sqrt(((ours + theirs + 2) / (asked + 2) - middle**2) / (asked + 2))
    low, high = 100 * (middle - error), 100 * (middle + error)
    return Lead(duel["keep"], duel["method"], 100 * (ours - theirs) / asked, low, high)


def put_into(path: Path, told: Told) -> None:
    """Replace the text between the two marks of a file."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    path.write_text(before + section(told) + rest.partition(END)[2], encoding="utf-8")


def section(told: Told) -> str:
    """The section of the guide, marks included."""
    return "\n".join([BEGIN, *_summary(told), "", *_verdict(told), END])


def in_words(told: Told) -> str:
    """The README of this folder."""
    kinds = list(told["rows"][0]["kinds"])
    found = [(kind, one) for kind in kinds for one in leads(told, kind)]
    lost = [f"- {kind}, {one.keep} tokens, {_loss(one)}" for kind, one in found if one.high < 0]
    lines = [
        "# Every selector at the paper's budgets, on the embedded model",
        "",
        f"`{told['command']}` writes all files of this folder: `questions.jsonl` ({told['per_kind']} questions of each",
        f"of {len(kinds)} kinds, each about a picture of its own, from seeds on which nothing was trained or tuned),",
        "`results.json`, `plot.png`, and this page. It ran on",
        f"{_where(told)}.",
        "",
        *_summary(told),
        "",
        "![Accuracy against tokens kept, one line per method](plot.png)",
        "",
        *_verdict(told),
        "",
        f"By kind of question there are {len(found)} comparisons. PruneSID is significantly worse in {len(lost)} of",
        f"them; {_by_chance(len(found))} would be so by chance.",
        *(["", *lost] if lost else []),
        "",
        "## PruneSID against each",
        "",
        "The lead of PruneSID on the same questions in percentage points (negative: it is behind), with its 95 %",
        "interval (adjusted Wald for pairs, Bonett and Price 2012):",
        "",
        *_ahead(told),
        "",
        "## By kind of question",
        "",
        "Share of right answers, absolute and relative to no pruning. Coverage is the share of things with a kept",
        "patch; a patch that `visionzip` merges into another one does not count.",
        "",
        *_by_kind(told),
    ]
    return "\n".join(lines) + "\n"


def _where(told: Told) -> str:
    has, made = told["machine"], told["versions"]
    machine = f"{has['cpu']}, {has['threads']} of {has['cores']} cores, torch {made['torch']}"
    return machine + (
        f", and took {told['processor_seconds'] / 60:.1f} minutes of CPU time" if told["in_one_go"] else ""
    )


def _grid(told: Told) -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Methods, budgets, and the row of each pair."""
    rows = {(row["method"], row["keep"]): row for row in told["rows"][1:]}
    methods, budgets = (list(dict.fromkeys(names)) for names in zip(*rows, strict=True))
    return methods, budgets, rows


def _table(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = lines
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rest]]


def _summary(told: Told) -> list[str]:
    methods, budgets, rows = _grid(told)
    base = told["rows"][0]["marks"]["accuracy"]
    best = {keep: max(round(rows[name, keep]["marks"]["accuracy"], 3) for name in methods) for keep in budgets}

    def cell(name: str, keep: str) -> str:
        row = rows[name, keep]
        text = f"{row['marks']['accuracy']:.1%}"
        bold = round(row["marks"]["accuracy"], 3) == best[keep]
        return f"{f'**{text}**' if bold else text} / {row['coverage']:.0%}"

    lines = [["tokens kept", *budgets], *([name, *(cell(name, keep) for keep in budgets)] for name in methods)]
    return [
        f"Share of right answers / share of things with a kept patch. With all 576 tokens, {base:.1%} of the",
        "answers are right. The best value of each budget is bold.",
        "",
        *_table(lines),
    ]


def _verdict(told: Told) -> list[str]:
    """How many comparisons PruneSID wins and loses, and where it is behind."""
    found = leads(told)
    lost, won = [one for one in found if one.high < 0], [one for one in found if one.low > 0]
    undecided = len(found) - len(lost) - len(won)
    lines = [
        f"There are {len(found)} comparisons (a rival at a budget, on the same questions). PruneSID is significantly",
        f"better in {len(won)}, significantly worse in {len(lost)}, and {undecided} are undecided. A difference is",
        "significant if its 95 % interval excludes zero. Without any true difference,",
        f"{_by_chance(len(found))} would be significant in each direction by chance.",
    ]
    behind = [one for one in found if one.points < 0]
    named = "PruneSID is behind these methods, in percentage points with 95 % intervals:"
    return [*lines, *(["", named, "", *_losses(behind)] if behind else []), *_uncovered(told)]


def _uncovered(told: Told) -> Iterator[str]:
    """The budgets at which others cover significantly more things."""
    methods, budgets, rows = _grid(told)
    for keep in budgets:
        ours = rows["prunesid", keep]["coverage"]
        leads = {name: _difference(rows[name, keep]["coverage"], ours, told["things"]) for name in methods}
        sure = [f"{name} {rows[name, keep]['coverage']:.1%} ({low:+.1f} to {high:+.1f})"
                for name, (low, high) in leads.items() if low > 0]  # fmt: skip
        if sure:
            yield ""
            yield f"With {keep} tokens PruneSID keeps a patch of {ours:.1%} of {told['things']:,} things. These keep"
            yield f"one of significantly more (difference in percentage points): {', '.join(sure)}."


def _difference(share: float, other: float, count: int) -> tuple[float, float]:
    """The 95 % interval in percentage points, computed as for different things, which makes it wider."""
    error = 1.96 * math.sqrt((share * (1 - share) + other * (1 - other)) / count)
    return 100 * (share - other - error), 100 * (share - other + error)


def _by_chance(comparisons: int) -> str:
    """How many of these comparisons would be significant in one direction without any true difference."""
    return f"about {max(1, round(0.025 * comparisons))}"


def _losses(lost: Sequence[Lead]) -> Iterator[str]:
    for keep in sorted({one.keep for one in lost}, key=int):
        some = sorted((one for one in lost if one.keep == keep), key=lambda one: one.points)
        yield f"- {keep} tokens: {'; '.join(map(_loss, some))}"


def _loss(one: Lead) -> str:
    return f"{one.rival} by {-one.points:.1f} ({-one.high:.1f} to {-one.low:.1f})"


def _ahead(told: Told) -> list[str]:
    by = {(one.rival, one.keep): one for one in leads(told)}
    rivals, budgets = (list(dict.fromkeys(names)) for names in zip(*by, strict=True))
    return _table([["against", *budgets], *([name, *(str(by[name, keep]) for keep in budgets)] for name in rivals)])


def _by_kind(told: Told) -> list[str]:
    kinds = list(told["rows"][0]["kinds"])
    lines = [["setting", "right", "of unpruned, 95 %", "coverage", *kinds]]
    for row in told["rows"]:
        marks = row["marks"]
        interval = f"{marks['share']:.1%} ({marks['low']:.1%} to {marks['high']:.1%})"
        cells = [row["setting"], f"{marks['accuracy']:.3f}", interval, f"{row['coverage']:.3f}"]
        lines.append([*cells, *(f"{row['kinds'][kind]['accuracy']:.2f}" for kind in kinds)])
    return _table(lines)
