"""Search for the smallest budget that reaches a target accuracy, by bisection."""

from __future__ import annotations

from collections.abc import Sequence

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.evaluate.advice import LOOK_AT_UNPRUNED, is_certain
from prunesid_cli.evaluate.report import SettingSummary, Target
from prunesid_cli.evaluate.results import PruningSetting


class BudgetSearch:
    """A bisection over the settings of one method. Call `next_candidate` and `update` in turn.

    Args:
        settings: The settings, the smallest budget first.
        target: What should be reached.
        by_estimate: Whether a setting counts as reaching it if the estimate does, however uncertain that is.
    """

    def __init__(self, settings: Sequence[PruningSetting], target: Target, by_estimate: bool = False) -> None:
        self._settings, self._target, self._by_estimate = settings, target, by_estimate
        self._low, self._high = 0, len(settings)
        self._tried = set[int]()

    @property
    def tried(self) -> list[PruningSetting]:
        """The settings that were tried, the smallest budget first."""
        return [self._settings[index] for index in sorted(self._tried)]

    def next_candidate(self) -> PruningSetting | None:
        """Return the setting to try next; None when the search has ended."""
        if self._low >= self._high:
            return None
        middle = (self._low + self._high) // 2
        self._tried.add(middle)
        return self._settings[middle]

    def update(self, summary: SettingSummary) -> None:
        """Halve the range by the result of the last candidate. A setting that keeps everything counts as reaching.

        Raises:
            PruneSIDError: The unpruned model is never right.
        """
        if summary.accuracy.share is None:
            raise PruneSIDError(
                "the unpruned model answers no record correctly, so there is no accuracy to keep", LOOK_AT_UNPRUNED
            )
        middle = (self._low + self._high) // 2
        reaches_by_estimate = self._by_estimate and summary.accuracy.share >= self._target.share
        if reaches_by_estimate or is_certain(summary, self._target):
            self._high = middle
        else:
            self._low = middle + 1
