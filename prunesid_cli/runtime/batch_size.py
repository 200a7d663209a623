"""Batches: fixed-size grouping, and a batch size that grows while that increases throughput."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import TypeVar

T = TypeVar("T")

TRIALS = 5
"""Batches timed at each size. The first is a warm-up; the median rate of the others counts."""
MIN_SPEEDUP = 1.05
"""Factor by which doubling the size must increase the rate; below it, the larger size is not worth its memory."""
MIN_FILL = 0.5
"""Batches filled to this share of the size or less are not timed. (A batch that the next item would overfill mostly
is fuller.)"""


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split items into lists of `size`; the last one may be shorter."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


@dataclass
class BatchSizeTuner:
    """Tunes the batch size from the times it is given. It measures nothing itself.

    Attributes:
        size: Images, tiles and frames of the next batch.
        max_size: Limit of `size`. If both are equal, the size does not grow.
        best_rate: Images, tiles and frames per second at the last size that was accepted.
        trial_rates: Rates measured at the present size.
        busy_until: When the last batch was done.
    """

    size: int
    max_size: int
    best_rate: float = 0.0
    trial_rates: list[float] = field(default_factory=list)
    busy_until: float = 0.0

    @classmethod
    def fixed(cls, size: int) -> BatchSizeTuner:
        """A tuner whose size does not grow."""
        return cls(size, size)

    def record(self, count: int, seconds: float) -> None:
        """Record the time of a batch, and choose the next size once there are `TRIALS` of them.

        Args:
            count: Images, tiles and frames of the batch.
            seconds: Time it took.
        """
        if self.size >= self.max_size or count <= MIN_FILL * self.size:
            return
        if count > self.size:  # a single item can be larger than a batch should be
            self.size, self.trial_rates = min(count, self.max_size), []
        self.trial_rates.append(count / max(seconds, 1e-9))
        if len(self.trial_rates) < TRIALS:
            return
        rate = median(self.trial_rates[1:])
        if rate >= MIN_SPEEDUP * self.best_rate:
            self.size, self.best_rate, self.trial_rates = min(2 * self.size, self.max_size), rate, []
        else:
            self.size //= 2
            self.max_size = self.size

    def record_span(self, count: int, start: float, end: float) -> None:
        """Record when a batch was begun and done. If batches overlap, each counts from the end of the one before."""
        self.record(count, end - max(start, self.busy_until))
        self.busy_until = end

    def shrink(self, count: int) -> None:
        """Halve the size for good, after a batch of `count` did not fit into memory."""
        self.size = self.max_size = max(1, min(self.size, count) // 2)
