"""What goes where when a person is looking: results to stdout, bars and messages to the terminal on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run

pty = pytest.importorskip("pty")


def on_terminal(*args: object) -> tuple[int, str, str]:
    """Run with stderr on a terminal and stdout in a pipe -> exit code, stdout, stderr."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "prunesid_cli", *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=follower, text=True) as process:
        os.close(follower)
        shown = b""
        try:
            while piece := os.read(leader, 65536):
                shown += piece
        except OSError:  # Linux' way to say that the other side is closed
            pass
        out = process.stdout.read() if process.stdout else ""
    os.close(leader)
    return process.returncode, out, shown.decode()


@pytest.mark.slow
def test_results_stay_on_stdout_beside_a_bar(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    code, out, shown = on_terminal("compress", *pictures[:3], "-m", llava, "--out", tmp_path / "c", "--json")
    assert code == 0, shown
    assert [json.loads(line)["source"] for line in out.splitlines()] == [str(path) for path in pictures[:3]]
    assert "compressing" in shown
    code, out, shown = on_terminal("answer", tmp_path / "c", "what is shown?")
    assert (code, len([json.loads(line) for line in out.splitlines()])) == (0, 3)
    assert "answering" in shown
    assert '"answer"' not in shown


def test_wrong_usage_is_an_error_and_a_hint(run: Run) -> None:
    for args in (("ask", "--nonsense"), ("compress", "x"), ("nonsense",), ("answer", "c", "p", "--seed", str(2**64))):
        ran = run(*args)
        assert (ran.code, ran.out) == (2, ""), args
        assert ran.err.startswith("error: ")
        assert "--help" in ran.err
    assert "Usage" in run().err + run().out


def test_debug_works_everywhere(run: Run, tmp_path: Path) -> None:
    for args in (("cache", "ls", tmp_path), ("cache", "info", tmp_path), ("cache", "verify", tmp_path)):
        assert "Traceback" in run(*args, "--debug").err
        assert "Traceback" not in run(*args).err
    assert run("models", "--debug").code == 0


def test_a_fault_of_ours_shows_where_it_happened(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict[str, str]:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr("prunesid_cli.cli.commands.models.load_config", fail)
    ran = run("models")
    assert (ran.code, "this is a bug" in ran.err, "Traceback" in ran.err) == (1, True, False)
    assert "on purpose" in run("models", "--debug").err
    assert "in fail" in run("models", "--debug").err
