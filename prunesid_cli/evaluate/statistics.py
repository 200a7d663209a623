"""What marks say: accuracies, how they relate to those without pruning, and how sure that is.

All settings answer the same questions, so differences are compared question by question, which is surer than comparing
averages; and questions are drawn again and again with a seed of its own (bootstrap) for the intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DRAWS, BLOCK = 4000, 100
LEVEL = 0.95
Marks = NDArray[np.float64]
"""Of one setting: for each question from 0 to 1."""


@dataclass(frozen=True)
class Relative:
    """Accuracy, its share of that without pruning, the interval in which that share lies with 95 % confidence, and how
    sure it is that it reaches `target` (None where none was asked for)."""

    accuracy: float
    share: float
    low: float
    high: float
    sure: float | None = None


def relative(marks: Marks, base: Marks, target: float | None = None, seed: int = 0) -> Relative:
    """How one setting does beside the unpruned model on the same questions [M]; shares are 1 where both have none."""
    rng, even = np.random.default_rng(seed), np.full(len(marks), 1 / len(marks))
    draws = (rng.multinomial(len(marks), even, size=BLOCK) for _ in range(DRAWS // BLOCK))
    shares = np.concatenate([_share(one @ marks, one @ base) for one in draws])
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    share = _share(marks.sum()[None], base.sum()[None])[0]
    sure = None if target is None else float((shares >= target).mean())
    return Relative(float(marks.mean()), float(share), float(low), float(high), sure)


def _share(some: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(base > 0, some / np.where(base > 0, base, 1), np.where(some > 0, np.inf, 1.0))


def by_kind(marks: Marks, kinds: Sequence[str]) -> dict[str, float]:
    """Average marks of each kind, in the order in which kinds first come."""
    named = np.array(kinds)
    return {kind: float(marks[named == kind].mean()) for kind in dict.fromkeys(kinds)}


@dataclass(frozen=True)
class Detection:
    """Of questions that are answered by yes or no: precision and recall of yes, and how often yes is said."""

    precision: float
    recall: float
    yes: float


def detection(said: Sequence[str], expected: Sequence[str]) -> Detection | None:
    """said, expected: "yes" or "no" for each such question; None where there is none."""
    if not said:
        return None
    ours, truth = np.array(said) == "yes", np.array(expected) == "yes"
    both = float((ours & truth).sum())
    return Detection(both / max(1.0, float(ours.sum())), both / max(1.0, float(truth.sum())), float(ours.mean()))
