"""The start of the command: what it imports, and how long it takes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest


def test_help_and_listing_start_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from prunesid_cli import cli; sys.argv = ['prunesid', *sys.argv[1:]]; cli._run();"
        "print([m for m in ('torch', 'transformers', 'PIL', 'scipy', 'numpy') if m in sys.modules], file=sys.stderr)"
    )
    for args in (["--help"], ["ask", "--help"], ["bench", "--help"], ["models"], ["cache", "ls", str(tmp_path)]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, timeout=60)
        assert done.stderr.splitlines()[-1] == "[]", (args, done.stderr)


@pytest.mark.slow
def test_start_is_quick() -> None:
    """A ratio, not seconds: all that we add to the help of a bare typer app costs less than that app."""
    bare = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"

    def seconds(*args: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *args], capture_output=True, timeout=60, check=True)
        return time.perf_counter() - began

    turns = [(seconds("-m", "prunesid_cli", "--help"), seconds("-c", bare)) for _ in range(8)]
    ours, others = map(min, zip(*turns, strict=True))
    assert ours < 2 * others
