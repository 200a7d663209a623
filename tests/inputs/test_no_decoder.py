"""Where neither PyAV nor decord is installed: clips say what to install, and all else goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import hostile

WITHOUT = """
import sys
sys.modules["av"] = sys.modules["decord"] = None
from prunesid_cli.cli.app import main
main()
"""


def without(*args: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process that can import neither."""
    command = [sys.executable, "-c", WITHOUT, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_a_clip_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(hostile.ftyp(b"isom") + bytes(500))
    asked = without("ask", tmp_path / "a.mp4", "what happens?", "-m", "demo")
    assert (asked.returncode, asked.stdout) == (1, "")
    said = f"error: {tmp_path / 'a.mp4'}: clips need a package that is not installed\nhint: pip install av\n"
    assert asked.stderr.endswith(said)


@pytest.mark.slow
def test_pictures_need_no_decoder(pictures: list[Path]) -> None:
    asked = without("ask", pictures[0], "what is shown?", "-m", "demo")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert asked.stdout.strip()
