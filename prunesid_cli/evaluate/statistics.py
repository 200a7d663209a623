"""Statistics of scores: accuracies, their ratio to the unpruned accuracy, and confidence intervals of both.

All settings answer the same questions, so settings are compared question by question, which is more precise than
comparing averages. Intervals are found by bootstrap with a fixed seed. Questions about the same media are drawn
together, since they tend to be right or wrong together (clusters). Two questions are added to the draw: one that
pruning gained and one that it lost. Without them, a few questions that happen not to differ would suggest that no
question ever does. With them, an interval is about as wide as that of Bonett and Price (Adjusted Wald intervals for a
difference of paired proportions, 2012), and its width shrinks as 1/n.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

NUM_DRAWS, DRAWS_PER_BLOCK = 4000, 100
CONFIDENCE_LEVEL = 0.95
MIN_CLUSTERS = 5
"""Groups of questions about the same media below which no interval is given: it would say next to nothing."""
MAX_NEEDED = 10_000_000
Scores = NDArray[np.float64]
"""Score of each question [M], from 0 to 1, under one setting."""


@dataclass(frozen=True)
class RelativeAccuracy:
    """Accuracy, and its ratio to the unpruned accuracy.

    The ratio is None if the unpruned model is never right. Intervals and confidence are None if the questions are about
    fewer than `MIN_CLUSTERS` different media.

    Attributes:
        accuracy: Mean score.
        interval: Ends of the 95 % confidence interval of `accuracy`.
        share: Accuracy divided by the unpruned accuracy.
        low: Lower end of the 95 % confidence interval of `share`; None for the unpruned model itself.
        high: Upper end of the interval.
        confidence: Probability that `share` reaches the target; None without a target.
        count: Number of questions.
    """

    accuracy: float
    share: float | None
    low: float | None = None
    high: float | None = None
    confidence: float | None = None
    interval: tuple[float, float] | None = None
    count: int = 0


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of the scores of two settings on the same questions.

    Attributes:
        mean: The difference.
        interval: Ends of its 95 % confidence interval; None as in `RelativeAccuracy`.
    """

    mean: float
    interval: tuple[float, float] | None


def paired_difference(scores: Scores, others: Scores, media: Sequence[Hashable], seed: int = 0) -> PairedDifference:
    """Compare two settings on the same questions; see `relative_accuracy` for the arguments."""
    mean = float((scores - others).mean())
    if len(set(media)) < MIN_CLUSTERS:
        return PairedDifference(mean, None)
    clusters = _clusters(media)
    differences = np.append(np.bincount(clusters, scores - others), (1, -1))
    sizes = np.append(np.bincount(clusters), (1, 1))
    draws = [counts @ differences / (counts @ sizes) for counts in _draw_clusters(len(sizes), seed)]
    return PairedDifference(mean, _interval(np.concatenate(draws)))


def relative_accuracy(
    scores: Scores, unpruned: Scores, media: Sequence[Hashable], target: float | None = None, seed: int = 0
) -> RelativeAccuracy:
    """Compare one setting with the unpruned model on the same questions.

    Args:
        scores: Scores of the setting [M]; `unpruned` itself for the unpruned model: then the share is 1, which is no
            estimate.
        unpruned: Scores of the unpruned model [M].
        media: Media of each question [M].
        target: Share that should be reached.
        seed: Seed of the bootstrap.
    """
    accuracy, count = float(scores.mean()), len(scores)
    share = float(scores.sum() / unpruned.sum()) if unpruned.any() else None
    if len(set(media)) < MIN_CLUSTERS:
        return RelativeAccuracy(accuracy, share, count=count)
    clusters = _clusters(media)
    # The two added questions: right only with pruning, and right only without.
    cluster_scores = np.append(np.bincount(clusters, scores), (1, 0))
    cluster_unpruned = np.append(np.bincount(clusters, unpruned), (0, 1))
    cluster_sizes = np.append(np.bincount(clusters), (1, 1))
    accuracies, shares = [], []
    for counts in _draw_clusters(len(cluster_scores), seed):
        accuracies.append(counts @ cluster_scores / (counts @ cluster_sizes))
        shares.append(_share(counts @ cluster_scores, counts @ cluster_unpruned))
    interval = _interval(np.concatenate(accuracies))
    if share is None:
        return RelativeAccuracy(accuracy, None, interval=interval, count=count)
    if scores is unpruned:
        certainty = None if target is None else 1.0
        return RelativeAccuracy(accuracy, share, confidence=certainty, interval=interval, count=count)
    drawn_shares = np.concatenate(shares)
    low, high = _interval(drawn_shares)
    confidence = None if target is None else float((drawn_shares >= target).mean())
    return RelativeAccuracy(accuracy, share, low, high, confidence, interval, count)


def _draw_clusters(count: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield blocks of draws: how often each of `count` groups is drawn [DRAWS_PER_BLOCK, count]."""
    rng, probabilities = np.random.default_rng(seed), np.full(count, 1 / count)
    for _ in range(NUM_DRAWS // DRAWS_PER_BLOCK):
        yield rng.multinomial(count, probabilities, size=DRAWS_PER_BLOCK)


def records_needed(
    scores: Scores, unpruned: Scores, media: Sequence[Hashable], target: float, confidence: float
) -> int | None:
    """Estimate how many records would show that a share of the unpruned accuracy is kept.

    The mean of `score - target * unpruned` over groups of questions about the same media must be above 0 with that
    confidence, by the normal distribution, and with the two questions that are added to each draw.

    Args:
        scores: Scores of the setting, or of one that changes nothing [M].
        unpruned: Scores of the unpruned model [M].
        media: Media of each question [M].
        target: The share.
        confidence: How sure it should be.

    Returns:
        The number, with two digits that count; None if no number would do, because the share is not kept.
    """
    margins = np.bincount(_clusters(media), scores - target * unpruned)
    mean, variance, z = float(margins.mean()), float(margins.var()), NormalDist().inv_cdf(confidence)
    if mean <= 0:
        return None

    def is_enough(count: int) -> bool:
        spread = (count * variance + 1 + target**2) ** 0.5
        return count * mean + 1 - target >= z * spread

    low, high = 0, 1
    while not is_enough(high):
        low, high = high, high * 2
        if high > MAX_NEEDED:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    num_records = round(high * len(scores) / len(margins))
    unit = 10 ** max(0, len(str(num_records)) - 2)
    return -(-num_records // unit) * unit


def _clusters(media: Sequence[Hashable]) -> NDArray[np.intp]:
    """The number of the group of questions about the same media, for each question [M]."""
    numbers = {item: number for number, item in enumerate(dict.fromkeys(media))}
    return np.array([numbers[item] for item in media])


def _interval(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return float(low), float(high)


def _share(scores: NDArray[np.float64], unpruned: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ratios of sums; where the unpruned sum is 0, the largest plausible one: that in favour of pruning."""
    return np.where(unpruned > 0, scores / np.where(unpruned > 0, unpruned, 1), np.maximum(scores, 1.0))


@dataclass(frozen=True)
class Detection:
    """How well yes is detected among questions that are answered by yes or no.

    Attributes:
        precision: Share of right answers among the answers yes.
        recall: Share of the answer yes among the questions whose answer is yes.
        yes: Share of the answer yes among all questions.
    """

    precision: float
    recall: float
    yes: float


def detection(answers: Sequence[str], expected: Sequence[str]) -> Detection | None:
    """Return precision and recall of yes; None without questions. Both arguments hold "yes" or "no"."""
    if not answers:
        return None
    is_yes, is_expected = np.array(answers) == "yes", np.array(expected) == "yes"
    both = float((is_yes & is_expected).sum())
    return Detection(
        precision=both / max(1.0, float(is_yes.sum())),
        recall=both / max(1.0, float(is_expected.sum())),
        yes=float(is_yes.mean()),
    )
