"""Encoding and selection joined: what to keep of each image, and the token sets that come of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunesid_cli.errors import UsageError
from prunesid_cli.families.base import VisionHalf
from prunesid_cli.selection import select
from prunesid_cli.selection.budget import Budget, apportion, limits, reference, single
from prunesid_cli.selection.checks import check_finite
from prunesid_cli.selection.similarity import phi
from prunesid_cli.types import SUMMARY, Encoded, TokenSet

if TYPE_CHECKING:
    from prunesid_cli.selection import Method


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Pruner:
    """A vision half with what to keep and how to choose it; `sample` is the information of images to compare one with,
    where any are known."""

    vision: VisionHalf
    budget: Budget
    method: str | Method
    sample: Sequence[float]
    clock: Clock = field(default_factory=Clock)

    def encode(self, pixels: Sequence[Tensor]) -> Encoded:
        with self.clock.stage("encode"):
            return self.vision.encode(pixels)

    def information(self, encoded: Encoded) -> list[float]:
        """phi of each image of a batch."""
        values: list[float] = phi(encoded.features).tolist()
        return values

    @property
    def spreads(self) -> bool:
        """Whether images may get more or fewer tokens than the budget, which then is an average."""
        return self.budget.dynamic and self.budget.tokens(self.vision.total) < self.vision.total

    @property
    def phi_ref(self) -> float | None:
        """The information of an image that gets the budget itself; None where no image is known to compare with."""
        mean, n = self.budget.tokens(self.vision.total), self.vision.total
        return reference(self.sample, mean, *limits(mean, n)) if self.sample else None

    def counts(self, values: Sequence[float], already: Sequence[int] = ()) -> list[int]:
        """Tokens for each of a closed collection of images, given the information of each.

        `already`: what further images of the collection were given before, and keep.
        """
        mean, n = self.budget.tokens(self.vision.total), self.vision.total
        if not self.spreads:
            return [min(mean, n)] * len(values)
        floor, ceiling = limits(mean, n)
        if len(values) + len(already) > 1:
            left = mean * (len(values) + len(already)) - sum(already)
            return apportion(values, max(left, 0) / max(len(values), 1), floor, ceiling)
        phi_ref = self.phi_ref
        if phi_ref is None:
            raise UsageError(
                "--dynamic for one image needs the information of an average one, which this model does not carry",
                hint="give several images, or measure it with: prunesid compress IMAGES --calibrate --out CACHE",
            )
        return [single(value, phi_ref, mean, floor, ceiling) for value in values]

    def keep(self, encoded: Encoded, counts: Sequence[int]) -> list[TokenSet]:
        """The kept tokens of each image of a batch, CLS first where it is kept.

        Raises:
            NonFiniteError: with `rows`, the images whose features or saliency are not finite.
        """
        with self.clock.stage("select"):
            total, reserved = self.vision.total, int(encoded.summary is not None)
            if encoded.summary is not None:
                check_finite(encoded.summary)  # the rest is checked where it is used
            budgets = [count if count < total else total + reserved for count in counts]
            kept = select(encoded.features, encoded.saliency, budgets, self.method, reserved)
            # All at once: the host waits for a device that it asks.
            places = torch.cat(kept).cpu().split([len(indices) for indices in kept])
            return [
                self._token_set(encoded, row, kept[row], places[row].tolist(), counts[row] >= total)
                for row in range(len(kept))
            ]

    def _token_set(
        self, encoded: Encoded, row: int, indices: Tensor, places: Sequence[int], everything: bool
    ) -> TokenSet:
        """indices [T], also as numbers on the host; everything: what the stock model reads."""
        features, summary = encoded.features[row], encoded.summary
        with_summary = summary is not None and (not everything or encoded.summary_is_stock)
        tokens = features if everything else features[indices]
        if with_summary and summary is not None:
            tokens = torch.cat([summary[row : row + 1], tokens])
        names = (SUMMARY, *places) if with_summary else tuple(places)
        return TokenSet(tokens, names, self.vision.grid, self.vision.total)
