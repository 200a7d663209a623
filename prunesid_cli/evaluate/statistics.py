"""Statistics of scores: accuracies, their ratio to the unpruned accuracy, and confidence intervals of that ratio.

All settings answer the same questions, so settings are compared question by question, which is more precise than
comparing averages. Intervals are found by bootstrap with a fixed seed. Questions about the same media are drawn
together, since they tend to be right or wrong together (clusters). Two questions are added to the draw: one that
pruning gained and one that it lost. Without them, a few questions that happen not to differ would suggest that no
question ever does. With them, an interval is about as wide as that of Bonett and Price (Adjusted Wald intervals for a
difference of paired proportions, 2012), and its width shrinks as 1/n.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_DRAWS, DRAWS_PER_BLOCK = 4000, 100
CONFIDENCE_LEVEL = 0.95
Scores = NDArray[np.float64]
"""Score of each question [M], from 0 to 1, under one setting."""


@dataclass(frozen=True)
class RelativeAccuracy:
    """Accuracy, and its ratio to the unpruned accuracy. All but the accuracy are None if the unpruned model is never
    right.

    Attributes:
        accuracy: Mean score.
        share: Accuracy divided by the unpruned accuracy.
        low: Lower end of the 95 % confidence interval of `share`.
        high: Upper end of the interval.
        confidence: Probability that `share` reaches the target; None without a target.
    """

    accuracy: float
    share: float | None
    low: float | None
    high: float | None
    confidence: float | None = None


def unpruned_accuracy(scores: Scores, target: float | None = None) -> RelativeAccuracy:
    """Return the accuracy of the unpruned model relative to itself: the share is 1, and that is no estimate."""
    share = 1.0 if scores.any() else None
    return RelativeAccuracy(float(scores.mean()), share, share, share, None if target is None else share)


def relative_accuracy(
    scores: Scores, unpruned: Scores, media: Sequence[Hashable], target: float | None = None, seed: int = 0
) -> RelativeAccuracy:
    """Compare one setting with the unpruned model on the same questions.

    Args:
        scores: Scores of the setting [M].
        unpruned: Scores of the unpruned model [M].
        media: Media of each question [M].
        target: Share that should be reached.
        seed: Seed of the bootstrap.
    """
    if not unpruned.any():
        return RelativeAccuracy(float(scores.mean()), None, None, None)
    cluster_numbers = {item: number for number, item in enumerate(dict.fromkeys(media))}
    clusters = np.array([cluster_numbers[item] for item in media])
    # The two added questions: right only with pruning, and right only without.
    cluster_scores = np.append(np.bincount(clusters, scores), (1, 0))
    cluster_unpruned = np.append(np.bincount(clusters, unpruned), (0, 1))
    num_clusters = len(cluster_scores)
    rng, probabilities = np.random.default_rng(seed), np.full(num_clusters, 1 / num_clusters)
    shares = []
    for _ in range(NUM_DRAWS // DRAWS_PER_BLOCK):
        counts = rng.multinomial(num_clusters, probabilities, size=DRAWS_PER_BLOCK)
        shares.append(_share(counts @ cluster_scores, counts @ cluster_unpruned))
    drawn_shares = np.concatenate(shares)
    low, high = np.quantile(drawn_shares, [(1 - CONFIDENCE_LEVEL) / 2, (1 + CONFIDENCE_LEVEL) / 2])
    return RelativeAccuracy(
        accuracy=float(scores.mean()),
        share=float(scores.sum() / unpruned.sum()),
        low=float(low),
        high=float(high),
        confidence=None if target is None else float((drawn_shares >= target).mean()),
    )


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
