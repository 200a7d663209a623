"""What the commands write when stdout or stderr is a terminal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from prunesid_cli.text import escape_invisible
from tests.caches import edit_header
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


@pytest.mark.parametrize(
    "command",
    ["info", "ls", *(pytest.param(name, marks=pytest.mark.slow) for name in ("answer", "ask", "verify", "show"))],
)
def test_a_terminal_gets_no_escapes_from_a_cache(command: str, run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """Names, models, notes and answers are from strangers: they neither control the terminal nor hide."""
    evil = "\x1b]0;owned\x07\ufeff\u202e\x9b31m"
    picture = tmp_path / f"a{evil}.png"
    shutil.copy(pictures[0], picture)
    cache = tmp_path / "c"
    assert run("compress", picture, "--out", cache, "-m", "demo").code == 0
    (shard,) = cache.glob("prunesid-0*")
    (cache / "prunesid-index.safetensors").unlink()
    if command == "info":
        edit_header(shard, lambda body: body["run"].update(model=evil, method=evil, keep=evil))
    commands = {
        "answer": ("answer", cache, PROMPT, "--max-new-tokens", 3),
        "info": ("cache", "info", cache),
        "ls": ("cache", "ls", cache),
        "ask": ("ask", picture, PROMPT, "--compare", "--max-new-tokens", 3, "-m", "demo"),
        "verify": ("cache", "verify", cache),
        "show": ("show", picture, "-m", "demo"),
    }
    shown = stdout_on_terminal(*commands[command])
    assert shown
    assert not {"\x1b]", "\x07", "\ufeff", "\u202e", "\x9b"} & {*shown, *(shown[i : i + 2] for i in range(len(shown)))}
    if command in ("answer", "info", "ls"):
        assert r"\x1b]0;owned\x07\ufeff\u202e\x9b31m" in shown


def test_answers_keep_what_words_are_written_with() -> None:
    """Line breaks, tabs, joiners and variation selectors stay; what controls or hides is escaped."""
    text = "a\tb\nمی\u200cخواهم 👩\u200d🚀 ❤\ufe0f"
    assert escape_invisible(text, keep="\n\t") == text
    assert escape_invisible("\x1b[31m\u202e\u200b\x00\x85\U000e0041") == r"\x1b[31m\u202e\u200b\x00\x85\U000e0041"
    assert escape_invisible("a\nb\xa0\u2009") == r"a\nb\xa0\u2009"
