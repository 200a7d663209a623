"""The benchmark among the samples: one command makes it, and the guide shows what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from prunesid_cli.selection import METHODS
from samples.benchmark import tell

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "samples" / "benchmark"


def lead(ours: int, theirs: int) -> tell.Lead:
    kinds = {"colour": [ours, theirs], "count": [0, 0]}
    (result,) = tell.leads({"per_kind": 50, "duels": [{"keep": "64", "method": "grid", "kinds": kinds}]})
    return result


def test_a_lead_is_significant_only_if_enough_questions_differ() -> None:
    assert lead(7, 1).points == pytest.approx(6)
    few, many, lost = lead(4, 0), lead(8, 0), lead(0, 8)
    assert few.low < 0 < few.high
    assert 0 < many.low < many.points < many.high
    assert (lost.low, lost.high) == pytest.approx((-many.high, -many.low))
    assert str(lost).startswith("-8.0 (")


def test_the_pages_show_what_was_measured() -> None:
    report = json.loads((FOLDER / "results.json").read_text(encoding="utf-8"))
    assert tell.make_section(report) in tell.GUIDE.read_text(encoding="utf-8")
    assert tell.make_readme(report) == (FOLDER / "README.md").read_text(encoding="utf-8")
    questions = [json.loads(line) for line in (FOLDER / "questions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert set(Counter(question["kind"] for question in questions).values()) == {report["per_kind"]}
    assert len({question["media"] for question in questions}) == len(questions)


@pytest.mark.slow
def test_one_command_makes_the_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "samples.benchmark.make", "--per-kind", "1", "--out", tmp_path]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    report = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert {row["method"] for row in report["rows"]} == set(METHODS)
    base, *others = report["rows"]
    assert base["coverage"] == 1
    assert min(row["coverage"] for row in others) < 1
    (comparison,) = (item for item in report["duels"] if (item["method"], item["keep"]) == ("random", "16"))
    num_ahead = sum(ours - theirs for ours, theirs in comparison["kinds"].values())
    marks = {row["setting"]: row["marks"]["accuracy"] for row in report["rows"]}
    assert marks["16 prunesid"] - marks["16 random"] == pytest.approx(num_ahead / 8)
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == tell.make_readme(report)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "answers.jsonl").exists()
