"""The background thread runs calls in order, reports errors, and uses idle time."""

from __future__ import annotations

import time
from functools import partial

import pytest

from prunesid_cli.runtime.background_writer import BackgroundWriter


def test_calls_run_in_order_and_errors_are_raised() -> None:
    done = list[int]()
    with BackgroundWriter() as writer:
        for number in range(9):
            writer.submit(partial(done.append, number))
    assert done == list(range(9))
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as writer:
        writer.submit(lambda: 1 // 0)
        writer.submit(partial(done.append, 9))
    assert done == list(range(9))
    with pytest.raises(ZeroDivisionError), BackgroundWriter() as writer:
        for _ in range(9):
            writer.submit(lambda: 1 // 0)
            time.sleep(0.01)
        pytest.fail("the run went on")


def test_idle_time_is_used() -> None:
    done = list[str]()
    with BackgroundWriter(lambda: done.append("idle"), 0.05) as writer:
        writer.submit(lambda: done.append("call"))
        time.sleep(0.5)
    assert done[:2] == ["call", "idle"] or done[:3] == ["idle", "call", "idle"]
