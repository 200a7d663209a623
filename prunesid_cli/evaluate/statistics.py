"""What marks say: accuracies, how they relate to those without pruning, and how sure that is.

All settings answer the same questions, so differences are compared question by question, which is surer than comparing
averages. For the intervals questions are drawn again and again with a seed of its own (bootstrap): those about the same
media together, as they are right or wrong together (clusters), and from two more, one that pruning gained and one that
it lost. Without these, a few questions of which none happens to differ would say that none ever does; with them an
interval is about as wide as that of Bonett and Price (Adjusted Wald intervals for a difference of paired proportions,
2012) and closes as 1/n.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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
    sure it is that it reaches `target` (None where none was asked for). Of an unpruned model that is never right there
    is no share, and None of these."""

    accuracy: float
    share: float | None
    low: float | None
    high: float | None
    sure: float | None = None


def itself(base: Marks, target: float | None = None) -> Relative:
    """The unpruned model beside itself: the share is one, and that is no estimate."""
    share = 1.0 if base.any() else None
    return Relative(float(base.mean()), share, share, share, None if target is None else share)


def relative(
    marks: Marks, base: Marks, about: Sequence[Hashable], target: float | None = None, seed: int = 0
) -> Relative:
    """How one setting does beside the unpruned model on the same questions [M]; `about`: what each shows [M]."""
    if not base.any():
        return Relative(float(marks.mean()), None, None, None)
    numbers = {one: number for number, one in enumerate(dict.fromkeys(about))}
    cluster = np.array([numbers[one] for one in about])
    ours, theirs = (np.append(np.bincount(cluster, one), more) for one, more in ((marks, (1, 0)), (base, (0, 1))))
    rng, even = np.random.default_rng(seed), np.full(len(ours), 1 / len(ours))
    draws = [rng.multinomial(len(ours), even, size=BLOCK) for _ in range(DRAWS // BLOCK)]
    shares = np.concatenate([_share(one @ ours, one @ theirs) for one in draws])
    low, high = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    sure = None if target is None else float((shares >= target).mean())
    return Relative(float(marks.mean()), float(marks.sum() / base.sum()), float(low), float(high), sure)


def _share(some: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a draw that holds nothing that was right without pruning, the most that can be said for pruning."""
    return np.where(base > 0, some / np.where(base > 0, base, 1), np.maximum(some, 1.0))


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
