"""Results of a benchmark: the laps of each round, and figures of each setting at each batch size."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from prunesid_cli.bench.timing import Lap

STOCK = "stock"
"""Name of the setting without pruning that all others are compared with."""
STAGES = ("decode", "encode", "select", "project", "prefill", "decoding")
"""Open files and prepare pixels; run the tower; select tokens; embed the prompt (which runs the projector where that is
in the language half); generate the first token; generate the further tokens. The stock model runs its projector in
"encode" and selects nothing."""
STAGES_TO_FIRST_TOKEN = STAGES[:-1]
CACHE_STAGES = ("write", "read")
"""Laps of a cache, which do not count in the total."""


@dataclass(frozen=True)
class RoundResult:
    """One round of one setting.

    Attributes:
        laps: Stage -> its lap.
        tokens: Visual tokens of the batch before pruning.
        kept: Visual tokens of the batch after pruning.
        text: Other tokens of the prompts.
    """

    laps: Mapping[str, Lap]
    tokens: int
    kept: int
    text: int


@dataclass(frozen=True)
class SettingResult:
    """All rounds of one setting at one batch size.

    Attributes:
        setting: A budget as given to --keep, or `STOCK`.
        batch_size: Items per batch.
        new_tokens: Tokens of each answer.
        rounds: The rounds; the first one is the warm-up.
    """

    setting: str
    batch_size: int
    new_tokens: int
    rounds: Sequence[RoundResult]

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds of each lap for a whole batch: the median of the rounds after the warm-up."""
        names = self.rounds[0].laps
        return {name: statistics.median(result.laps[name].seconds for result in self.rounds[1:]) for name in names}

    @property
    def total_seconds(self) -> float:
        return sum(self.seconds[name] for name in STAGES)

    @property
    def seconds_to_first_token(self) -> float:
        return sum(self.seconds[name] for name in STAGES_TO_FIRST_TOKEN)

    @property
    def seconds_per_token(self) -> float:
        """Seconds of each token after the first."""
        return self.seconds["decoding"] / (self.new_tokens - 1)

    @property
    def spread(self) -> float:
        """Duration of the longest round divided by that of the shortest."""
        totals = [sum(result.laps[name].seconds for name in STAGES) for result in self.rounds[1:]]
        return max(totals) / min(totals)

    @property
    def is_pruned(self) -> bool:
        return self.mean("kept") < self.mean("tokens")

    def mean(self, name: str) -> float:
        """Mean per item of `tokens`, `kept` or `text`."""
        return statistics.fmean(getattr(result, name) for result in self.rounds[1:]) / self.batch_size

    def maximum(self, name: str, stage: str | None = None) -> float | None:
        """Maximum of `grown_mb` or `peak_mb` over all rounds, the warm-up included: of one stage, or of all."""
        laps = [lap for result in self.rounds for key, lap in result.laps.items() if stage in (None, key)]
        values = [value for lap in laps if (value := getattr(lap, name)) is not None]
        return max(values) if values else None
