"""Token budgets: how many tokens to keep of an item, and how to spread an average by information (Eq. 7).

This module does not import torch, so that a command line can be parsed and checked at once.
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
MIN_TOKENS = 16
"""Smallest floor of a dynamic budget, in tokens, unless the mean itself is smaller."""
MIN_PHI = 1e-6
"""Smallest information used. An image without any (phi = 0) still takes part in a division by proportion."""
REFERENCE_WEIGHT = 0.02
"""Weight of the newest item in a stream's reference, once the stream has had 1 / REFERENCE_WEIGHT items."""
SURPLUS_CORRECTION = 0.1
"""Share of a stream's surplus that is taken from the next item's tokens."""

Bounds = Sequence[tuple[int, int]]
"""The floor and the ceiling of each item, in tokens."""


class Spread(Enum):
    """What a budget is spread over in proportion to information (Eq. 7)."""

    ACROSS_ITEMS = "across items"
    """All items of a run, and the tiles or frames of each item: the budget is an average."""
    WITHIN_ITEM = "within item"
    """The tiles or frames of an item: each item gets the budget."""
    NONE = "none"
    """Nothing: tiles and frames share their item's budget by their number of tokens."""

    @classmethod
    def from_option(cls, dynamic: bool | None) -> Spread:
        """Translate --dynamic (True), --fixed (False) or neither (None)."""
        return {True: cls.ACROSS_ITEMS, None: cls.WITHIN_ITEM, False: cls.NONE}[dynamic]


@dataclass(frozen=True)
class Budget:
    """How many visual tokens to keep of an item. Without a count and a share, all tokens are kept.

    Attributes:
        count: Number of tokens, CLS included.
        share: Share of the item's tokens, in (0, 1].
        spread: What the budget is spread over by information.
    """

    count: int | None = None
    share: Fraction | None = None
    spread: Spread = Spread.WITHIN_ITEM

    @property
    def keeps_all(self) -> bool:
        return self.count is None and self.share is None

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
            hint = HINT
            if re.fullmatch(r"0?\.\d+", text, re.ASCII) and Fraction(text) > 0:  # most likely meant as a share
                hint = f"did you mean {_format_decimal(Fraction(text) * 100)}%? {HINT}"
            raise UsageError(f"cannot read '{text}' as a budget", hint=hint)
        value = Fraction(text.rstrip("%"))
        if value <= 0:
            raise UsageError(f"a budget must be more than nothing, not {text}", hint=HINT)
        if not text.endswith("%"):
            return cls(count=int(value), spread=spread)
        if value > 100:
            raise UsageError(f"a share cannot be more than 100%, not {text}", hint=HINT)
        return cls(share=value / 100, spread=spread)

    def tokens(self, n_tokens: int) -> int:
        """Return the budget for an item of `n_tokens` tokens.

        Returns:
            The count as asked (it can be more than `n_tokens`), the share (rounded half up, at least 1), or `n_tokens`.
        """
        if self.count is not None:
            return self.count
        if self.share is not None:
            top, bottom = n_tokens * self.share.numerator, self.share.denominator
            return max((2 * top + bottom) // (2 * bottom), 1)  # integers, since this is done for each image
        return n_tokens

    def __str__(self) -> str:
        if self.count is not None:
            return str(self.count)
        if self.share is not None:
            return f"{_format_decimal(self.share * 100)}%"
        return "all"


def token_bounds(mean: float, n_tokens: int) -> tuple[int, int]:
    """Return the floor and the ceiling for one image when `mean` tokens are kept on average.

    They are half and twice the mean: .949 of answers right; wider limits .939, narrower ones .944
    (tests/benchmarks/README.md).
    """
    ceiling = min(n_tokens, math.ceil(2 * mean))
    floor = min(max(MIN_TOKENS, math.floor(mean / 2)), math.floor(mean), ceiling)
    return floor, ceiling


def spread_tokens(phi: Sequence[float] | Tensor, means: Sequence[float], bounds: Bounds) -> list[int]:
    """Spread tokens over items in proportion to their information and their means, within the bounds (Eq. 7).

    Over all of a run: .949 of answers right; within items of four, as of tiles or frames, .942
    (tests/benchmarks/README.md).

    Args:
        phi: Information of each item.
        means: Tokens that each item would get if all had the same information.
        bounds: Floor and ceiling of each item.

    Returns:
        Tokens of each item. Their sum is exactly round_half_up(sum of means) wherever the bounds allow it, else the
        nearest sum that they allow.

    Raises:
        NonFiniteError: An information is not finite; `rows` says which.
    """
    weights = [value * mean for value, mean in zip(_check_phi(phi), means, strict=True)]
    floors, ceilings = sum(floor for floor, _ in bounds), sum(ceiling for _, ceiling in bounds)
    total = min(max(_round_half_up(math.fsum(means)), floors), ceilings)
    ideal = _clamp(weights, _fit_scale(weights, total, bounds), bounds)
    tokens = [math.floor(value) for value in ideal]
    # Largest remainder first, the lowest index on ties.
    order = sorted(range(len(weights)), key=lambda i: tokens[i] - ideal[i])
    while (lack := total - sum(tokens)) > 0:
        for i in [i for i in order if tokens[i] < bounds[i][1]][:lack]:
            tokens[i] += 1
    return tokens


def reference_phi(sample: Sequence[float], mean: float, floor: int, ceiling: int) -> float:
    """Return the information of an image that gets the mean, among images like the sample.

    It is the average of the sample, corrected for images that meet their floor or their ceiling.
    """
    values = _check_phi(sample)
    return mean / _fit_scale(values, mean * len(values), [(floor, ceiling)] * len(values))


def tokens_against_reference(phi: float, phi_ref: float, mean: float, floor: int, ceiling: int) -> int:
    """Return the tokens of one image (Eq. 7); an image of information `phi_ref` gets `mean`."""
    value, reference = _check_phi([phi, phi_ref])
    return min(max(_round_half_up(mean * value / reference), floor), ceiling)


@dataclass(frozen=True)
class TokenStream:
    """Eq. 7 over an endless sequence of items: the running average of their tokens approaches the budget.

    Each item is compared with a running reference. Rounding, the bounds and a change of the items move the average away
    from the budget; SURPLUS_CORRECTION moves it back. For any sequence the surplus stays bounded as long as the bounds
    allow it.

    Attributes:
        budget: The average to reach.
        phi_ref: Information of an average item so far; None before the first one.
        num_items: Number of items so far.
        surplus: Tokens given so far beyond the budget.
    """

    budget: Budget
    phi_ref: float | None = None
    num_items: int = 0
    surplus: float = 0.0

    def advance(self, phi: float, total: int, tokens: int) -> TokenStream:
        """Return the state after an item was given `tokens` of its `total` tokens.

        It depends only on what a cache stores, so that a restarted run continues as the first one would have.
        """
        (value,) = _check_phi([phi])
        phi_ref = value if self.phi_ref is None else self.phi_ref
        weight = max(REFERENCE_WEIGHT, 1 / (self.num_items + 1))
        return replace(
            self,
            phi_ref=phi_ref + weight * (value - phi_ref),
            num_items=self.num_items + 1,
            surplus=self.surplus + tokens - min(self.budget.tokens(total), total),
        )

    def spread(self, phi: Sequence[float], totals: Sequence[int]) -> list[int]:
        """Return the tokens of the next items, given the information and the number of tokens of each."""
        counts, state = list[int](), self
        for value, total in zip(_check_phi(phi), totals, strict=True):
            mean = min(self.budget.tokens(total), total)
            floor, ceiling = token_bounds(mean, total)
            ideal = mean * value / (state.phi_ref or value) - SURPLUS_CORRECTION * state.surplus
            counts.append(min(max(_round_half_up(ideal), floor), ceiling))
            state = state.advance(value, total, counts[-1])
        return counts


def _check_phi(phi: Sequence[float] | Tensor) -> list[float]:
    values = [float(value) for value in getattr(phi, "tolist", lambda: phi)()]
    rows = [row for row, value in enumerate(values) if not math.isfinite(value)]
    if rows:
        raise NonFiniteError(f"NaN or infinity in the information of row {rows}", rows=rows)
    return [max(value, MIN_PHI) for value in values]


def _fit_scale(weights: Sequence[float], total: float, bounds: Bounds) -> float:
    """Find s so that clamp(s x weight) adds up to `total`, by bisection to the last bit from below."""
    low, high = 0.0, max((ceiling / weight for weight, (_, ceiling) in zip(weights, bounds, strict=True)), default=1.0)
    if sum(_clamp(weights, high, bounds)) <= total:
        return high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if sum(_clamp(weights, middle, bounds)) <= total else (low, middle)
    return low


def _clamp(weights: Sequence[float], scale: float, bounds: Bounds) -> list[float]:
    return [min(max(scale * weight, floor), ceiling) for weight, (floor, ceiling) in zip(weights, bounds, strict=True)]


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5)


def _format_decimal(value: Fraction) -> str:
    """Write a number without an exponent: 11, 11.1, 0.05."""
    return format(Decimal(value.numerator) / Decimal(value.denominator), "f")
