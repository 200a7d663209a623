"""Without PyAV and decord, the error for a clip says what to install, and images work."""

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


def run_without_decoders(*args: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that cannot import the decoders."""
    command = [sys.executable, "-c", WITHOUT, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def test_the_error_for_a_clip_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(hostile.ftyp(b"isom") + bytes(500))
    ask = run_without_decoders("ask", tmp_path / "a.mp4", "what happens?", "-m", "demo")
    assert (ask.returncode, ask.stdout) == (1, "")
    expected = f"error: {tmp_path / 'a.mp4'}: clips need a package that is not installed\nhint: pip install av\n"
    assert ask.stderr.endswith(expected)


@pytest.mark.slow
def test_images_need_no_video_decoder(pictures: list[Path]) -> None:
    ask = run_without_decoders("ask", pictures[0], "what is shown?", "-m", "demo")
    assert (ask.returncode, ask.stderr) == (0, "")
    assert ask.stdout.strip()
