"""Write results.json as text: a README for this folder, and a section of the guide on benchmark results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

GUIDE = Path(__file__).parents[1] / "guides" / "benchmark-results.md"
BEGIN, END = "<!-- made by python -m samples.benchmark.make -->", "<!-- until here -->"
Report = dict[str, Any]
"""The contents of results.json."""


class Lead(NamedTuple):
    """By how many percentage points PruneSID is ahead of a rival at a budget, with its 95 % interval."""

    keep: str
    rival: str
    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def leads(report: Report, kind: str = "") -> list[Lead]:
    """The lead over every rival at every budget, over the questions of one kind, or over all questions."""
    return [_lead(comparison, report["per_kind"], kind) for comparison in report["duels"]]


def _lead(comparison: dict[str, Any], per_kind: int, kind: str) -> Lead:
    """The lead as a difference of two shares of the same questions, with the adjusted Wald interval of Bonett and Price
    (2012). It counts one more question won and one more lost, so that it holds if few questions differ."""
    pairs = [comparison["kinds"][kind]] if kind else list(comparison["kinds"].values())
    ours, theirs = (sum(side) for side in zip(*pairs, strict=True))
    num_questions = per_kind * len(pairs)
    middle = (ours - theirs) / (num_questions + 2)
    error = 1.96 * math.sqrt(((ours + theirs + 2) / (num_questions + 2) - middle**2) / (num_questions + 2))
    low, high = 100 * (middle - error), 100 * (middle + error)
    return Lead(comparison["keep"], comparison["method"], 100 * (ours - theirs) / num_questions, low, high)


def replace_section(path: Path, report: Report) -> None:
    """Replace the text between the two marks of a file."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    path.write_text(before + make_section(report) + rest.partition(END)[2], encoding="utf-8")


def make_section(report: Report) -> str:
    """The section of the guide, marks included."""
    return "\n".join([BEGIN, *_summary(report), "", *_verdict(report), END])


def make_readme(report: Report) -> str:
    """The README of this folder."""
    kinds = list(report["rows"][0]["kinds"])
    command, per_kind = report["command"], report["per_kind"]
    kind_leads = [(kind, lead) for kind in kinds for lead in leads(report, kind)]
    lost = [f"- {kind}, {lead.keep} tokens, {_format_loss(lead)}" for kind, lead in kind_leads if lead.high < 0]
    num_compared = len(kind_leads)
    lines = [
        "# Every selector at the paper's budgets, on the embedded model",
        "",
        f"`{command}` writes all files of this folder: `questions.jsonl` ({per_kind} questions of each",
        f"of {len(kinds)} kinds, each about a picture of its own, from seeds on which nothing was trained or tuned),",
        "`results.json`, `plot.png`, and this page. It ran on",
        f"{_machine(report)}.",
        "",
        *_summary(report),
        "",
        "![Accuracy against tokens kept, one line per method](plot.png)",
        "",
        *_verdict(report),
        "",
        f"By kind of question there are {num_compared} comparisons. PruneSID is significantly worse in {len(lost)} of",
        f"them; {_by_chance(num_compared)} would be so by chance.",
        *(["", *lost] if lost else []),
        "",
        "## PruneSID against each",
        "",
        "The lead of PruneSID on the same questions in percentage points (negative: it is behind), with its 95 %",
        "interval (adjusted Wald for pairs, Bonett and Price 2012):",
        "",
        *_ahead(report),
        "",
        "## By kind of question",
        "",
        "Share of right answers, absolute and relative to no pruning. Coverage is the share of things with a kept",
        "patch; a patch that `visionzip` merges into another one does not count.",
        "",
        *_by_kind(report),
    ]
    return "\n".join(lines) + "\n"


def _machine(report: Report) -> str:
    machine, versions = report["machine"], report["versions"]
    text = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores, torch {versions['torch']}"
    return text + (
        f", and took {report['processor_seconds'] / 60:.1f} minutes of CPU time" if report["in_one_go"] else ""
    )


def _rows_by_setting(report: Report) -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Methods, budgets, and the row of each pair."""
    rows = {(row["method"], row["keep"]): row for row in report["rows"][1:]}
    methods, budgets = (list(dict.fromkeys(names)) for names in zip(*rows, strict=True))
    return methods, budgets, rows


def _make_table(lines: Sequence[Sequence[str]]) -> list[str]:
    head, *rest = lines
    return ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rest]]


def _summary(report: Report) -> list[str]:
    methods, budgets, rows = _rows_by_setting(report)
    unpruned = report["rows"][0]["marks"]["accuracy"]
    best = {keep: max(round(rows[name, keep]["marks"]["accuracy"], 3) for name in methods) for keep in budgets}

    def cell(name: str, keep: str) -> str:
        row = rows[name, keep]
        text = f"{row['marks']['accuracy']:.1%}"
        bold = round(row["marks"]["accuracy"], 3) == best[keep]
        return f"{f'**{text}**' if bold else text} / {row['coverage']:.0%}"

    lines = [["tokens kept", *budgets], *([name, *(cell(name, keep) for keep in budgets)] for name in methods)]
    return [
        f"Share of right answers / share of things with a kept patch. With all 576 tokens, {unpruned:.1%} of the",
        "answers are right. The best value of each budget is bold.",
        "",
        *_make_table(lines),
    ]


def _verdict(report: Report) -> list[str]:
    """How many comparisons PruneSID wins and loses, and where it is behind."""
    all_leads = leads(report)
    lost, won = [lead for lead in all_leads if lead.high < 0], [lead for lead in all_leads if lead.low > 0]
    num_compared = len(all_leads)
    undecided = num_compared - len(lost) - len(won)
    lines = [
        f"There are {num_compared} comparisons (a rival at a budget, on the same questions). PruneSID is significantly",
        f"better in {len(won)}, significantly worse in {len(lost)}, and {undecided} are undecided. A difference is",
        "significant if its 95 % interval excludes zero. Without any true difference,",
        f"{_by_chance(num_compared)} would be significant in each direction by chance.",
    ]
    behind = [lead for lead in all_leads if lead.points < 0]
    heading = "PruneSID is behind these methods, in percentage points with 95 % intervals:"
    return [*lines, *(["", heading, "", *_format_losses(behind)] if behind else []), *_uncovered(report)]


def _uncovered(report: Report) -> Iterator[str]:
    """The budgets at which others cover significantly more things."""
    methods, budgets, rows = _rows_by_setting(report)
    for keep in budgets:
        ours = rows["prunesid", keep]["coverage"]
        differences = {name: _difference(rows[name, keep]["coverage"], ours, report["things"]) for name in methods}
        significant = [f"{name} {rows[name, keep]['coverage']:.1%} ({low:+.1f} to {high:+.1f})"
                for name, (low, high) in differences.items() if low > 0]  # fmt: skip
        if significant:
            yield ""
            yield f"With {keep} tokens PruneSID keeps a patch of {ours:.1%} of {report['things']:,} things. These keep"
            yield f"one of significantly more (difference in percentage points): {', '.join(significant)}."


def _difference(share: float, other: float, count: int) -> tuple[float, float]:
    """The 95 % interval in percentage points, computed as for different things, which makes it wider."""
    error = 1.96 * math.sqrt((share * (1 - share) + other * (1 - other)) / count)
    return 100 * (share - other - error), 100 * (share - other + error)


def _by_chance(comparisons: int) -> str:
    """How many of these comparisons would be significant in one direction without any true difference."""
    return f"about {max(1, round(0.025 * comparisons))}"


def _format_losses(lost: Sequence[Lead]) -> Iterator[str]:
    for keep in sorted({lead.keep for lead in lost}, key=int):
        at_budget = sorted((lead for lead in lost if lead.keep == keep), key=lambda lead: lead.points)
        yield f"- {keep} tokens: {'; '.join(map(_format_loss, at_budget))}"


def _format_loss(lead: Lead) -> str:
    return f"{lead.rival} by {-lead.points:.1f} ({-lead.high:.1f} to {-lead.low:.1f})"


def _ahead(report: Report) -> list[str]:
    by_setting = {(lead.rival, lead.keep): lead for lead in leads(report)}
    rivals, budgets = (list(dict.fromkeys(names)) for names in zip(*by_setting, strict=True))
    return _make_table(
        [["against", *budgets], *([name, *(str(by_setting[name, keep]) for keep in budgets)] for name in rivals)]
    )


def _by_kind(report: Report) -> list[str]:
    kinds = list(report["rows"][0]["kinds"])
    lines = [["setting", "right", "of unpruned, 95 %", "coverage", *kinds]]
    for row in report["rows"]:
        marks = row["marks"]
        has_interval = marks["low"] is not None  # the unpruned model has none, and neither have a few questions
        ends = f" ({marks['low']:.1%} to {marks['high']:.1%})" if has_interval else ""
        interval = f"{marks['share']:.1%}{ends}"
        cells = [row["setting"], f"{marks['accuracy']:.3f}", interval, f"{row['coverage']:.3f}"]
        lines.append([*cells, *(f"{row['kinds'][kind]['accuracy']:.2f}" for kind in kinds)])
    return _make_table(lines)
