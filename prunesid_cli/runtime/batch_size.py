"""How large a batch is: grown while that makes it quicker, halved where memory ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

TRIALS = 5
"""Batches of a size, after the first of which, a warm-up, the median of the others counts."""
GAIN = 1.05
"""Twice the size must be so many times as quick, or it is not worth its memory."""
FULL = 0.5
"""A batch that is filled no more than this tells nothing. (One that the next item would overfill is, mostly.)"""


@dataclass
class BatchSizeTuner:
    """Decides from what it is told alone.

    size     pictures, tiles and frames of the next batch
    ceiling  it grows no further; the same as `size`: it does not grow
    """

    size: int
    ceiling: int
    rate: float = 0.0
    trials: list[float] = field(default_factory=list)

    @classmethod
    def fixed(cls, size: int) -> BatchSizeTuner:
        return cls(size, size)

    def took(self, count: int, seconds: float) -> None:
        """A batch of `count` was worked on for so long."""
        if self.size >= self.ceiling or count <= FULL * self.size:
            return
        if count > self.size:  # one item can be more than a batch should be
            self.size, self.trials = min(count, self.ceiling), []
        self.trials.append(count / max(seconds, 1e-9))
        if len(self.trials) == TRIALS:
            self._decide(median(self.trials[1:]))

    def _decide(self, rate: float) -> None:
        if rate >= GAIN * self.rate:
            self.size, self.rate, self.trials = min(2 * self.size, self.ceiling), rate, []
        else:
            self.size //= 2
            self.ceiling = self.size

    def too_large(self, count: int) -> None:
        """A batch of `count` did not fit into memory. Nothing will be as large again."""
        self.size = self.ceiling = max(1, min(self.size, count) // 2)
