"""Progress: the rate is shown once it means something; without a terminal, a line a minute."""

from __future__ import annotations

import itertools

import pytest

from prunesid_cli.cli import progress
from prunesid_cli.cli.progress import LOG_SECONDS, ProgressBar
from tests.cli.processes import stderr_on_terminal


class Clock:
    """Stands for the module `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def finish_batch(bar: ProgressBar, size: int) -> None:
    for _ in range(size):
        bar.advance()


def test_the_rate_is_that_of_batches_and_not_of_the_results_of_one(clock: Clock) -> None:
    bar = ProgressBar("compressing", 1000)
    clock.now += 20  # the model is loaded
    finish_batch(bar, 32)
    assert bar.rate == ""
    for _ in range(3):
        clock.now += 2
        finish_batch(bar, 32)
        assert bar.rate == "16.0/s"


def test_the_rate_follows_changes(clock: Clock) -> None:
    bar = ProgressBar("compressing", None)
    for seconds, _ in itertools.product((1, 0.25), range(400)):
        clock.now += seconds
        finish_batch(bar, 8)
    assert bar.rate == "32.0/s"


def test_without_a_terminal_there_is_a_line_a_minute(clock: Clock) -> None:
    lines = list[str]()
    bar = ProgressBar("compressing", None, log=lines.append)
    for number in range(7):
        bar.advance(10, has_failed=number == 3)
        clock.now += LOG_SECONDS / 2
    assert lines == [
        "compressing: 30   0.3/s",
        "compressing: 50   0.3/s   1 failed",
        "compressing: 70   0.3/s   1 failed",
    ]
    bar.set_total(80)
    clock.now += LOG_SECONDS
    bar.advance(10)
    assert lines[-1].startswith("compressing: 80 of 80 ")


def test_a_terminal_shows_what_is_loaded_until_the_result_comes() -> None:
    code, out, shown = stderr_on_terminal("ask", "samples/scene1.png", "what is shown?", "-m", "demo")
    assert (code, bool(out)) == (0, True)
    assert shown == "loading demo ...\r\x1b[K"
