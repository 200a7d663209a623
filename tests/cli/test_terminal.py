"""What the commands write when stdout or stderr is a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.processes import (
    stderr_on_terminal,
    stdout_on_terminal,
)
from tests.conftest import PROMPT, Run


@pytest.mark.slow
def test_the_progress_bar_leaves_results_on_stdout(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    code, out, shown = stderr_on_terminal("compress", *pictures[:3], "-m", llava, "--out", tmp_path / "c", "--json")
    assert code == 0, shown
    assert [json.loads(line)["source"] for line in out.splitlines()] == [str(path) for path in pictures[:3]]
    assert "compressing" in shown
    code, out, shown = stderr_on_terminal("answer", tmp_path / "c", "what is shown?")
    assert (code, len([json.loads(line) for line in out.splitlines()])) == (0, 3)
    assert "answering" in shown
    assert '"answer"' not in shown


@pytest.mark.slow
def test_a_terminal_shows_text_instead_of_json(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    expected = run("ask", "-m", llava, pictures[0], PROMPT).out
    assert stdout_on_terminal("ask", "-m", llava, pictures[0], PROMPT) == expected
    run("compress", *pictures[:2], "--out", tmp_path / "c", "-m", llava)
    records = run("answer", tmp_path / "c", PROMPT).records
    text = "".join(f"{record['source']}: {record['answer']}\n" for record in records)
    assert stdout_on_terminal("answer", tmp_path / "c", PROMPT) == text
