"""The stopwatch adds up the time of each stage."""

from __future__ import annotations

import time

import pytest

from prunesid_cli.runtime.stopwatch import Stopwatch


def test_times_of_a_stage_add_up() -> None:
    stopwatch = Stopwatch()
    for _ in range(2):
        with stopwatch.stage("encode"):
            time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), stopwatch.stage("select"):
        1 // 0  # noqa: B018
    assert stopwatch.seconds["encode"] >= 0.02
    assert list(stopwatch.seconds) == ["encode", "select"]
