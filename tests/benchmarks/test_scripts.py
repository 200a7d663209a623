"""Every benchmark can be imported and parses its command line, and that of the host runs."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

SCRIPTS = [path.stem for path in Path(__file__).parent.glob("*.py") if "add_argument" in path.read_text("utf-8")]
SCRIPTS.remove(Path(__file__).stem)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(f"tests.benchmarks.{name}").main()
    assert (stop.value.code, "usage: " in capsys.readouterr().out) == (0, True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["JPEG 640x480, CLIP 336", "clip 640x480, 8 frames, CLIP 224"])
def test_the_benchmark_of_the_host_measures_every_stage(kind: str, tmp_path: Path) -> None:
    """Each input is decoded and written, also by workers that give the same picture for all."""
    from tests.benchmarks.host import CASES, measure

    pytest.importorskip("av")
    found = measure(CASES[kind], tmp_path, scale=0.05)
    assert found["inputs"] == 32
    assert min(found["floor_ms"], found["main_ms"], found["two_over_one"], *found["ceilings"].values()) > 0
