"""Decides how many tokens each input of a run keeps: the budget, a planned share of it, or a running share."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.pipeline.pruner import FixedItem, Pruner
from prunesid_cli.selection.budget import REFERENCE_WEIGHT, TokenStream
from prunesid_cli.tokencache import IndexEntry

if TYPE_CHECKING:
    from prunesid_cli.pipeline.load import LoadedInput
    from prunesid_cli.pipeline.measure import MeasuredInput


class TokenAllocator(Protocol):
    """Says how many tokens inputs keep. `refused`: inputs that cannot be encoded, by number, with the reason."""

    @property
    def refused(self) -> Mapping[int, PruneSIDError]: ...

    def token_counts(self, inputs: Sequence[LoadedInput], phis: Sequence[float]) -> list[int]:
        """How many tokens the next inputs keep, by their information. May be asked again with fewer of them."""

    def record(self, inputs: Sequence[LoadedInput], phis: Sequence[float], counts: Sequence[int]) -> None:
        """These inputs were pruned to these numbers of tokens."""


@dataclass(frozen=True)
class UniformAllocator:
    """Gives every input the budget: the same number of tokens, or the same share of its tokens."""

    pruner: Pruner
    refused: Mapping[int, PruneSIDError] = field(default_factory=dict)

    def token_counts(self, inputs: Sequence[LoadedInput], phis: Sequence[float]) -> list[int]:
        return [self.pruner.mean_tokens(item.pixels.layout.total) for item in inputs]

    def record(self, inputs: Sequence[LoadedInput], phis: Sequence[float], counts: Sequence[int]) -> None:
        """Nothing depends on earlier inputs."""


@dataclass(frozen=True)
class PlannedAllocator:
    """Eq. 7 over a closed collection that was measured before. `plan` has the tokens of each input, by number."""

    plan: Sequence[int]
    refused: Mapping[int, PruneSIDError]

    def token_counts(self, inputs: Sequence[LoadedInput], phis: Sequence[float]) -> list[int]:
        return [self.plan[item.number] for item in inputs]

    def record(self, inputs: Sequence[LoadedInput], phis: Sequence[float], counts: Sequence[int]) -> None:
        """Nothing depends on earlier inputs."""


@dataclass
class StreamingAllocator:
    """Eq. 7 over inputs that arrive one by one. The running average counts only what was really kept."""

    stream: TokenStream
    refused: Mapping[int, PruneSIDError] = field(default_factory=dict)

    def token_counts(self, inputs: Sequence[LoadedInput], phis: Sequence[float]) -> list[int]:
        return self.stream.spread(phis, [item.pixels.layout.total for item in inputs])

    def record(self, inputs: Sequence[LoadedInput], phis: Sequence[float], counts: Sequence[int]) -> None:
        for item, phi, count in zip(inputs, phis, counts, strict=True):
            self.stream = self.stream.advance(phi, item.pixels.layout.total, count)


def allocate_on_arrival(pruner: Pruner, cached: Iterable[IndexEntry]) -> TokenAllocator:
    """An allocator for inputs that are not measured beforehand.

    Args:
        pruner: With the budget.
        cached: What the cache holds, in the order in which it was written. The running average continues from it.
    """
    if not pruner.spreads_across_items:
        return UniformAllocator(pruner)
    stream, sample = TokenStream(pruner.budget), pruner.sample
    if sample:
        stream = TokenStream(pruner.budget, math.fsum(sample) / len(sample), round(1 / REFERENCE_WEIGHT))
    for entry in cached:
        stream = stream.advance(entry.phi, entry.total, entry.kept)
    return StreamingAllocator(stream)


NOT_CACHED = -1


def plan_tokens(pruner: Pruner, measured: Iterable[MeasuredInput]) -> PlannedAllocator:
    """An allocator for a closed collection (Eq. 7), from the information of each of its inputs.

    Inputs that are cached keep their tokens and take part in the average: an interrupted run continues as planned, and
    the average of a growing collection stays exact.
    """
    # Arrays of numbers: there may be millions of inputs.
    phis, totals, cached = array("d"), array("l"), array("l")
    refused = dict[int, PruneSIDError]()
    for number, item in enumerate(measured):
        phis.append(item.phi)
        totals.append(item.total)
        cached.append(NOT_CACHED if item.kept is None else item.kept)
        if item.error:
            refused[number] = item.error

    def plan(numbers: Sequence[int], fixed_items: Sequence[FixedItem] = ()) -> array[int]:
        counts = array("l", bytes(totals.itemsize * len(totals)))
        phi_values, token_totals = [phis[number] for number in numbers], [totals[number] for number in numbers]
        for number, count in zip(numbers, pruner.token_counts(phi_values, token_totals, fixed_items), strict=True):
            counts[number] = count
        return counts

    usable = [number for number in range(len(phis)) if number not in refused]
    fixed = [number for number in usable if cached[number] != NOT_CACHED]
    new = [number for number in usable if cached[number] == NOT_CACHED]
    if not new:
        return PlannedAllocator((), refused)
    counts = plan(usable)
    if any(counts[number] != cached[number] for number in fixed):  # the collection changed: new inputs even it out
        counts = plan(new, [FixedItem(totals[number], cached[number]) for number in fixed])
    return PlannedAllocator(counts, refused)
