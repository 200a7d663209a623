"""Write results.json as text: a README for this folder, and a section of the guide on benchmark results."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

GUIDE = Path(__file__).parents[1] / "guides" / "benchmark-results.md"
BEGIN, END = "<!-- made by python -m samples.benchmark.make -->", "<!-- until here -->"
REFERENCE = "prunesid-plus"
"""The method that is compared with every other one."""
Report = dict[str, Any]
"""The contents of results.json."""


class Lead(NamedTuple):
    """By how many percentage points the reference is ahead of a rival at a budget, with its 95 % interval."""

    keep: str
    rival: str
    points: float
    low: float
    high: float

    def __str__(self) -> str:
        text = f"{self.points:+.1f} ({self.low:+.1f} to {self.high:+.1f})"
        return text if self.low <= 0 <= self.high else f"**{text}**"


def leads(report: Report, kind: str = "") -> list[Lead]:
    """The lead over every rival at every budget, over the questions of one kind, or over all questions."""
    return [_lead(comparison, report["questions"], kind) for comparison in report["comparisons"]]


def _lead(comparison: dict[str, Any], questions: dict[str, int], kind: str) -> Lead:
    """The lead as a difference of two shares of the same questions, with the adjusted Wald interval of Bonett and Price
    (2012). It counts one more question won and one more lost, so that it holds if few questions differ."""
    kinds = [kind] if kind else list(questions)
    ours, theirs = (sum(side) for side in zip(*(comparison["kinds"][name] for name in kinds), strict=True))
    num_questions = sum(questions[name] for name in kinds)
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
    questions: dict[str, int] = report["questions"]
    kind_leads = [(kind, lead) for kind in questions for lead in leads(report, kind)]
    lost = [f"- {kind}, {lead.keep} tokens, {_format_loss(lead)}" for kind, lead in kind_leads if lead.high < 0]
    won = sum(lead.low > 0 for _, lead in kind_leads)
    machine, versions = report["machine"], report["versions"]
    lines = [
        "# Every selector at six budgets, on the embedded model",
        "",
        *_wrap(
            f"`{report['command']}` writes `results.json`, `plot.png` and this page. It asks",
            f"{sum(questions.values()):,} questions, each about pictures of its own, from seeds on which nothing was",
            f"trained or tuned. It ran on {machine['cpu']}, {machine['cores']} cores, torch {versions['torch']}, and",
            "leaves questions, pictures and answers in a folder of `runs`; `prunesid report` shows them.",
        ),
        "",
        *_make_table([["kind", *questions], ["questions", *map(str, questions.values())]]),
        "",
        *_wrap(
            "Questions of the kind *simple* are of the first seven kinds, about simple scenes. *pair* is about two",
            "hard scenes, each pruned to the budget. *refusal* is about pictures that are not scenes. All others are",
            "about hard scenes: two to six things, some of them small, numbers of up to three digits, on textured or",
            "cluttered grounds.",
        ),
        "",
        *_wrap(
            "All pictures are drawn, and things stand out more than in photographs. The model was trained with tokens",
            "dropped at random, so it may answer pruned prompts better than whole ones.",
            "[The guide](../guides/benchmark-results.md) says more about the model, and",
            "[another one](../guides/choosing-tokens.md#method) what each method does.",
        ),
        "",
        *_summary(report),
        "",
        "![Accuracy against tokens kept, one line per method](plot.png)",
        "",
        *_verdict(report),
        "",
        *_wrap(
            f"By kind of question there are {len(kind_leads)} comparisons. {REFERENCE} is significantly better in",
            f"{won} and worse in {len(lost)}; {_by_chance(len(kind_leads))} would be so in each direction by chance.",
        ),
        *(["", "It is worse in:", "", *lost] if lost else []),
        "",
        f"## {REFERENCE} against each",
        "",
        *_wrap(
            f"The lead of {REFERENCE} on the same questions in percentage points (negative: it is behind), with its",
            "95 % interval (adjusted Wald for pairs, Bonett and Price 2012). Significant ones are bold.",
        ),
        "",
        *_ahead(report),
        "",
        "## By kind of question",
        "",
        *_wrap(
            "Share of right answers, absolute and relative to no pruning. Coverage is the share of things and digits",
            "with a kept patch; a patch that `visionzip` merges into another one does not count.",
        ),
        "",
        *_by_kind(report),
    ]
    return "\n".join(lines) + "\n"


def _rows_by_setting(report: Report) -> tuple[list[str], list[str], dict[tuple[str, str], dict[str, Any]]]:
    """Methods, budgets, and the row of each pair."""
    rows = {(row["method"], row["keep"]): row for row in report["rows"][1:]}
    methods, budgets = (list(dict.fromkeys(names)) for names in zip(*rows, strict=True))
    return methods, budgets, rows


def _wrap(*parts: str) -> list[str]:
    """The lines of a paragraph."""
    return textwrap.wrap(" ".join(parts), 120, break_long_words=False, break_on_hyphens=False)


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
        return f"{f'**{text}**' if bold else text} / {row['coverage']:.1%}"

    lines = [["tokens kept", *budgets], *([name, *(cell(name, keep) for keep in budgets)] for name in methods)]
    return [
        *_wrap(
            f"Share of right answers / share of {report['things']:,} things and digits with a kept patch. With all 576",
            f"tokens, {unpruned:.1%} of the answers are right. The best value of each budget is bold.",
        ),
        "",
        *_make_table(lines),
    ]


def _verdict(report: Report) -> list[str]:
    """How many comparisons the reference wins and loses, and at each budget whom it does not beat."""
    all_leads = leads(report)
    lost, won = [lead for lead in all_leads if lead.high < 0], [lead for lead in all_leads if lead.low > 0]
    return [
        *_wrap(
            f"There are {len(all_leads)} comparisons (a rival at a budget, on the same questions). {REFERENCE} is",
            f"significantly better in {len(won)}, significantly worse in {len(lost)}, and",
            f"{len(all_leads) - len(lost) - len(won)} are undecided. A difference is significant if its 95 % interval",
            f"excludes zero. Without any true difference, {_by_chance(len(all_leads))} would be significant in each",
            "direction by chance.",
        ),
        "",
        *_wrap(
            "A method can only be better where others lose something. Coverage is the share of things and digits with",
            "a kept patch: with many tokens, nearly all methods cover nearly all of them.",
        ),
        "",
        *_by_budget(report, all_leads),
    ]


def _by_budget(report: Report, all_leads: Sequence[Lead]) -> Iterator[str]:
    _, budgets, rows = _rows_by_setting(report)
    for keep in budgets:
        here = [lead for lead in all_leads if lead.keep == keep]
        worse = [lead for lead in here if lead.high < 0]
        undecided = [lead for lead in here if lead.low <= 0 <= lead.high]
        parts = [f"better than {len(here) - len(worse) - len(undecided)} of {len(here)} rivals"]
        parts += [f"worse than {'; '.join(map(_format_loss, worse))}"] if worse else []
        names = ", ".join(f"{lead.rival} ({rows[lead.rival, keep]['coverage']:.1%})" for lead in undecided)
        parts += [f"undecided against {names}"] if undecided else []
        coverage = rows[REFERENCE, keep]["coverage"]
        yield f"- {keep} tokens (coverage {coverage:.1%}): {'; '.join(parts)}."


def _by_chance(comparisons: int) -> str:
    """How many of these comparisons would be significant in one direction without any true difference."""
    return f"about {max(1, round(0.025 * comparisons))}"


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
