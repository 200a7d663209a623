"""Progress: a bar on a terminal, else a line a minute."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

LOG_SECONDS = 60.0
SAMPLE_SECONDS, MAX_SAMPLES = 0.2, 150
"""Counts are sampled this often, and the rate is that of so many samples. Results come in batches: all of a batch are
one sample."""


@dataclass
class ProgressBar:
    """Counts finished items, and shows how many they are.

    Attributes:
        description: What is being done.
        total: Number of items; None if it is not known.
        log: Prints a line a minute, where there is no terminal.
        progress: Draws a bar with one task, on a terminal.
        count: Finished items.
        num_failed: Those of them that failed.
    """

    description: str
    total: int | None
    log: Callable[[str], object] | None = None
    progress: Progress | None = None
    count: int = 0
    num_failed: int = 0
    _samples: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=MAX_SAMPLES))
    _next_log: float = field(default_factory=lambda: time.monotonic() + LOG_SECONDS)

    def advance(self, count: int = 1, has_failed: bool = False) -> None:
        """Counts finished items, and whether the last one failed."""
        now = time.monotonic()
        self.count += count
        self.num_failed += has_failed
        if not self._samples or now > self._samples[-1][0] + SAMPLE_SECONDS:
            self._samples.append((now, self.count))
        if self.progress is not None:
            self.progress.update(self.progress.tasks[0].id, completed=self.count)
        elif self.log is not None and now >= self._next_log:
            self._next_log = now + LOG_SECONDS
            total = f" of {self.total:,}" if self.total is not None else ""
            self.log(
                "   ".join([f"{self.description}: {self.count:,}{total}", *filter(None, (self.rate, self.failures))])
            )

    def set_total(self, total: int) -> None:
        """Sets the number of items, once it is known."""
        self.total = total
        if self.progress is not None:
            self.progress.update(self.progress.tasks[0].id, total=total)

    @property
    def rate(self) -> str:
        """Items per second over the last half minute or more; empty until two batches are finished."""
        if len(self._samples) < 2:
            return ""
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return f"{(last - first) / (end - start):,.1f}/s"

    @property
    def failures(self) -> str:
        """How many items failed, if any did."""
        return f"{self.num_failed:,} failed" if self.num_failed else ""


def new_bar(bar: ProgressBar) -> Progress:
    """Draws how many items are done, the rate, the time left, and how many failed."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(bar.rate)

    class FailureColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(bar.failures, style="red")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    # rich would redirect stdout, and print results on stderr.
    console = Console(stderr=True)
    progress = Progress(*columns, FailureColumn(), console=console, transient=True, redirect_stdout=False)
    progress.add_task(bar.description, total=bar.total)
    return progress
