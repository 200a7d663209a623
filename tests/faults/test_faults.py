"""What a cache survives, in small trials. `python -m tests.faults` runs larger ones."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SMALL_TRIALS = [
    "kills --items 80 --kills 4",
    "mutations --items 20 --count 150",
]
LARGE_TRIALS = [
    "kills --items 400 --kills 15 --seed 1",
    "points --items 70",
    "gc --items 150 --seed 1",
    "mutations --items 100 --count 2000 --seed 1",
    "writers --items 200 --count 3",
    "disk --items 200 --count 6 --seed 1",
    "interrupts --items 300 --kills 8 --seed 1",
    "shards --items 200 --count 3",
]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
@pytest.mark.parametrize(
    "trial", [*SMALL_TRIALS, *(pytest.param(trial, marks=pytest.mark.slow) for trial in LARGE_TRIALS)]
)
def test_nothing_is_lost(trial: str) -> None:
    command = [sys.executable, "-m", "tests.faults", *trial.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    if done.stdout.startswith("not tried"):
        pytest.skip(done.stdout)
