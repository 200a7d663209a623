"""The benchmark among the samples: one command makes it, and the guide shows what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from prunesid_cli.demo.questions import KINDS
from prunesid_cli.selection import METHODS
from samples.benchmark import make, pages

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "samples" / "benchmark"


def lead(ours: int, theirs: int) -> pages.Lead:
    kinds = {"colour": [ours, theirs], "count": [0, 0]}
    comparisons = [{"keep": "64", "method": "grid", "kinds": kinds}]
    (result,) = pages.leads({"questions": {"colour": 50, "count": 50}, "comparisons": comparisons})
    return result


def test_a_lead_is_significant_only_if_enough_questions_differ() -> None:
    assert lead(7, 1).points == pytest.approx(6)
    few, many, lost = lead(4, 0), lead(8, 0), lead(0, 8)
    assert few.low < 0 < few.high
    assert 0 < many.low < many.points < many.high
    assert (lost.low, lost.high) == pytest.approx((-many.high, -many.low))
    assert str(lost).startswith("**-8.0 (") and str(few).startswith("+4.0 (")


def test_the_pages_show_what_was_measured() -> None:
    report = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    assert pages.make_section(report) in pages.GUIDE.read_text(encoding="utf-8")
    assert pages.make_readme(report) == (FOLDER / "README.md").read_text(encoding="utf-8")
    rounds = sum(report["questions"].values()) // make.QUESTIONS_PER_ROUND
    assert Counter(item.kind for item in make.make_questions(rounds)) == report["questions"]


def test_every_question_is_about_pictures_of_its_own() -> None:
    rounds = [list(make.make_questions(number)) for number in (1, 2)]
    assert rounds[1][: len(rounds[0])] == rounds[0]
    pictures = [picture for item in rounds[1] for picture in item.pictures]
    assert len(set(pictures)) == len(pictures)
    assert Counter(item.kind for item in rounds[0]) == {
        **dict.fromkeys((*KINDS, "pair"), 4),
        "simple": 3,
        "refusal": 1,
    }
    assert all((len(item.pictures) == 2) == (item.kind == "pair") for item in rounds[1])


def test_coverage_counts_parts_with_a_kept_patch() -> None:
    shown = np.full(576, -1, np.int8)
    shown[:3], shown[570:] = 0, 1
    kept = {"all": [{}], "2": [{"kept": "a" + 143 * "0"}], "1": [{"kept": 143 * "0" + "1"}]}
    lines = [{"media": ["pictures/a.png"], "setting": name, "patches": patches} for name, patches in kept.items()]
    assert make.measure_coverage(lines, {"a.png": shown}) == ({"all": 1.0, "2": 0.5, "1": 0.5}, 2)


@pytest.mark.slow
def test_one_command_makes_the_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "samples.benchmark.make", "--rounds", "1", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    report = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {row["method"] for row in report["rows"]} == set(METHODS)
    base, *others = report["rows"]
    assert base["coverage"] == 1
    assert min(row["coverage"] for row in others) < 1
    (comparison,) = (item for item in report["comparisons"] if (item["method"], item["keep"]) == ("random", "16"))
    num_ahead = sum(ours - theirs for ours, theirs in comparison["kinds"].values())
    marks = {row["setting"]: row["marks"]["accuracy"] for row in report["rows"]}
    assert marks[f"16 {pages.REFERENCE}"] - marks["16 random"] == pytest.approx(num_ahead / make.QUESTIONS_PER_ROUND)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == pages.make_readme(report)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
