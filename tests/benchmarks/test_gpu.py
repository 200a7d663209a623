"""The GPU benchmark runs on a CPU with tiny sizes: all parts, once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.accelerator import accelerator
from tests.benchmarks import gpu

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_part_runs_and_is_done_once(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.benchmarks.gpu", "--smoke", "--device", "cpu", "--out", str(out)]
    some = subprocess.run([*command, "--parts", "selection"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "selection {" in some.stdout
    whole = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "selection: there already" in whole.stdout
    report = json.loads(out.read_text())
    assert set(report["seconds"]) == set(gpu.PARTS)
    assert all(record["differ"] == 0 for record in report["agreement"])
    other = subprocess.run([*command, "--published", "."], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "name another --out" in other.stderr


@pytest.mark.slow
def test_it_runs_where_there_is_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stand-in for a GPU, in half precision."""
    out = tmp_path / "gpu.json"
    monkeypatch.setattr("sys.argv", ["gpu", "--smoke", "--device", "cuda:0", "--out", str(out)])
    with accelerator():
        gpu.main()
    report = json.loads(out.read_text())
    assert report["device"] == "stand-in" and set(report["seconds"]) == set(gpu.PARTS)
