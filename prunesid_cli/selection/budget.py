"""How many tokens to keep: a count, a share or all; and an average spread by information (Eq. 7).

Needs no torch, so that a command line can be read and checked at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import TYPE_CHECKING

from prunesid_cli.errors import NonFiniteError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

HINT = "write a number of tokens (64), a share (11%) or all"
FEWEST = 16
# An image without any information (phi = 0) still takes part in a division by proportion.
LEAST_PHI = 1e-6
MEMORY = 0.02
"""Weight of the newest image in a stream's reference, once there have been 1 / MEMORY of them."""
CORRECTION = 0.1
"""Share of the tokens that a stream has given too many so far, which its next image gets fewer."""


class Spread(Enum):
    """Over what a budget is spread in proportion to information (Eq. 7)."""

    ACROSS_ITEMS = "across items"
    """Over all items of a run, and over the tiles or frames of each: the budget is an average."""
    WITHIN_ITEM = "within item"
    """Over the tiles or frames of an item alone: each item gets the budget."""
    NONE = "none"
    """Over nothing: tiles and frames share their item's budget by their number of tokens."""

    @classmethod
    def from_option(cls, dynamic: bool | None) -> Spread:
        """What --dynamic (True), --fixed (False) or neither (None) means."""
        return {True: cls.ACROSS_ITEMS, None: cls.WITHIN_ITEM, False: cls.NONE}[dynamic]


@dataclass(frozen=True)
class Budget:
    """How many visual tokens to keep of an item.

    Attributes:
        count: A number of tokens, CLS included; or
        share: a share of the item's tokens, in (0, 1]; or neither: all.
        spread: Over what it is spread by information.
    """

    count: int | None = None
    share: Fraction | None = None
    spread: Spread = Spread.WITHIN_ITEM

    @classmethod
    def parse(cls, text: str, spread: Spread = Spread.WITHIN_ITEM) -> Budget:
        """Read "64", "11%" (decimals allowed) or "all".

        Raises:
            UsageError: The text is none of these.
        """
        text = text.strip().lower()
        if text == "all":
            return cls(spread=spread)
        if not re.fullmatch(r"[+-]?(\d+|\d*\.\d+%|\d+\.?%)", text, re.ASCII):
            raise UsageError(f"cannot read {text!r} as a budget", hint=_meant(text))
        value = Fraction(text.rstrip("%"))
        if value <= 0:
            raise UsageError(f"a budget must be more than nothing, not {text}", hint=HINT)
        if not text.endswith("%"):
            return cls(count=int(value), spread=spread)
        if value > 100:
            raise UsageError(f"a share cannot be more than 100%, not {text}", hint=HINT)
        return cls(share=value / 100, spread=spread)

    def tokens(self, n_tokens: int) -> int:
        """Of n tokens: the count as asked (it may be more than n), the share (half up, at least 1), or n."""
        if self.count is not None:
            return self.count
        if self.share is not None:
            return max(_half_up(n_tokens * self.share), 1)
        return n_tokens

    def __str__(self) -> str:
        if self.count is not None:
            return str(self.count)
        if self.share is not None:
            return f"{_decimal(self.share * 100)}%"
        return "all"


def _meant(text: str) -> str:
    """A decimal fraction is most likely a share."""
    if re.fullmatch(r"0?\.\d+", text, re.ASCII) and Fraction(text) > 0:
        return f"did you mean {_decimal(Fraction(text) * 100)}%? {HINT}"
    return HINT


def _half_up(value: Fraction | float) -> int:
    return math.floor(value + Fraction(1, 2)) if isinstance(value, Fraction) else math.floor(value + 0.5)


def _decimal(value: Fraction) -> str:
    """Written out, with no exponent: 11, 11.1, 0.05."""
    return format(Decimal(value.numerator) / Decimal(value.denominator), "f")


def limits(mean: float, n: int) -> tuple[int, int]:
    """Floor and ceiling for one image of n tokens when `mean` are kept on average.

    Half and twice the mean: .949 of answers right; wider limits .939, narrower ones .944 (tests/benchmarks/README.md).
    """
    ceiling = min(n, math.ceil(2 * mean))
    floor = min(max(FEWEST, math.floor(mean / 2)), math.floor(mean), ceiling)
    return floor, ceiling


Bounds = Sequence[tuple[int, int]]
"""A floor and a ceiling for each."""


def spread(phi: Sequence[float] | Tensor, means: Sequence[float], bounds: Bounds) -> list[int]:
    """Eq. 7: information of each, and what each would get if all had the same -> tokens of each, in proportion to both,
    within the bounds.

    Their sum is exactly round_half_up(sum of means) wherever the bounds allow it, else the nearest they do.

    Over all of a run: .949 of answers right; within items of four, as of tiles or frames, .942
    (tests/benchmarks/README.md).
    """
    weights = [value * mean for value, mean in zip(_usable(phi), means, strict=True)]
    floors, ceilings = sum(floor for floor, _ in bounds), sum(ceiling for _, ceiling in bounds)
    total = min(max(_half_up(math.fsum(means)), floors), ceilings)
    ideal = _clamped(weights, _scale(weights, total, bounds), bounds)
    tokens = [math.floor(value) for value in ideal]
    # Largest remainder first, the lowest index on ties.
    order = sorted(range(len(weights)), key=lambda i: tokens[i] - ideal[i])
    while (lack := total - sum(tokens)) > 0:
        for i in [i for i in order if tokens[i] < bounds[i][1]][:lack]:
            tokens[i] += 1
    return tokens


def reference(sample: Sequence[float], mean: float, floor: int, ceiling: int) -> float:
    """The information of an image that gets the mean, among images like these: their average, but for the limits."""
    values = _usable(sample)
    return mean / _scale(values, mean * len(values), [(floor, ceiling)] * len(values))


def single(phi: float, phi_ref: float, mean: float, floor: int, ceiling: int) -> int:
    """Eq. 7 for one image, against the information `phi_ref` of one that gets the mean."""
    value, against = _usable([phi, phi_ref])
    return min(max(_half_up(mean * value / against), floor), ceiling)


@dataclass(frozen=True)
class Stream:
    """Eq. 7 over images that come one after the other, without end: the running average of tokens goes to `budget`.

    Each is held against a running `reference`, the information of an average image so far (None before the first); what
    rounding, the limits and a change of the images have made of the average flows back by CORRECTION. Whatever the
    images, `surplus` (tokens given beyond the budget) stays bounded while the limits allow it. `images` are counted.
    """

    budget: Budget
    reference: float | None = None
    images: int = 0
    surplus: float = 0.0

    def tokens(self, phi: float, total: int) -> int:
        """For the next image, of information `phi` and so many tokens."""
        (value,) = _usable([phi])
        mean = self._mean(total)
        floor, ceiling = limits(mean, total)
        ideal = mean * value / (self.reference or value) - CORRECTION * self.surplus
        return min(max(_half_up(ideal), floor), ceiling)

    def after(self, phi: float, total: int, tokens: int) -> Stream:
        """Once that image was given so many: a function of what is in a cache, so that a restart goes on as it was."""
        (value,) = _usable([phi])
        reference = value if self.reference is None else self.reference
        weight = max(MEMORY, 1 / (self.images + 1))
        return replace(
            self,
            reference=reference + weight * (value - reference),
            images=self.images + 1,
            surplus=self.surplus + tokens - self._mean(total),
        )

    def spread(self, values: Sequence[float], totals: Sequence[int]) -> list[int]:
        """For the next images."""
        counts, state = list[int](), self
        for value, total in zip(_usable(values), totals, strict=True):
            counts.append(state.tokens(value, total))
            state = state.after(value, total, counts[-1])
        return counts

    def _mean(self, total: int) -> int:
        return min(self.budget.tokens(total), total)


def _usable(phi: Sequence[float] | Tensor) -> list[float]:
    values = [float(value) for value in getattr(phi, "tolist", lambda: phi)()]
    rows = [row for row, value in enumerate(values) if not math.isfinite(value)]
    if rows:
        raise NonFiniteError(f"NaN or infinity in the information of row {rows}", rows=rows)
    return [max(value, LEAST_PHI) for value in values]


def _scale(weights: Sequence[float], total: float, bounds: Bounds) -> float:
    """The s that makes clamp(s x weight) add up to `total`, found by bisection to the last bit from below."""
    low, high = 0.0, max((ceiling / weight for weight, (_, ceiling) in zip(weights, bounds, strict=True)), default=1.0)
    if sum(_clamped(weights, high, bounds)) <= total:
        return high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if sum(_clamped(weights, middle, bounds)) <= total else (low, middle)
    return low


def _clamped(weights: Sequence[float], scale: float, bounds: Bounds) -> list[float]:
    return [min(max(scale * weight, floor), ceiling) for weight, (floor, ceiling) in zip(weights, bounds, strict=True)]
