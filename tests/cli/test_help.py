"""The start of the command: what it imports, and how long it takes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import runpy, sys
try:
    runpy.run_module("prunesid_cli", run_name="__main__")
finally:
    large = ("torch", "transformers", "PIL", "scipy", "numpy")
    print([name for name in large if name in sys.modules], file=sys.stderr)
"""
"""Runs the command line in `sys.argv`; the last line of stderr names the large packages that it imported."""


def test_help_and_listing_start_without_torch(tmp_path: Path) -> None:
    """Nor do they import other large packages."""
    for args in (
        ["--help"],
        ["ask", "--help"],
        ["bench", "--help"],
        ["models"],
        ["models", "ls"],
        ["cache", "ls", str(tmp_path)],
    ):
        done = subprocess.run([sys.executable, "-c", PROGRAM, *args], capture_output=True, text=True, timeout=60)
        assert done.stderr.splitlines()[-1] == "[]", (args, done.stderr)


@pytest.mark.slow
def test_help_starts_quickly() -> None:
    """The help takes less than twice the time of a bare typer app. A ratio does not depend on the machine."""
    bare = "import typer; app = typer.Typer(); app.command()(lambda: None); app(['--help'])"

    def seconds(*args: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, *args], capture_output=True, timeout=60, check=True)
        return time.perf_counter() - start

    pairs = [(seconds("-m", "prunesid_cli", "--help"), seconds("-c", bare)) for _ in range(8)]
    prunesid_seconds, bare_seconds = map(min, zip(*pairs, strict=True))
    assert prunesid_seconds < 2 * bare_seconds
