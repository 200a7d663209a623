"""How many tokens each image of a run gets: as many as all others, or its share of a planned or a running average."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.pipeline.pruner import FixedItem, Pruner
from prunesid_cli.selection.budget import MEMORY, Stream
from prunesid_cli.tokencache import IndexEntry


class Sized(Protocol):
    """An input of known size and information (phi); `number`: its place in the listing."""

    @property
    def number(self) -> int: ...

    @property
    def phi(self) -> float: ...

    @property
    def total(self) -> int: ...


class TokenAllocator(Protocol):
    """`refused`: inputs that can get nothing, by number, and why."""

    @property
    def refused(self) -> Mapping[int, PruneSIDError]: ...

    def counts(self, images: Sequence[Sized]) -> list[int]:
        """Tokens for the next images. May be asked again for fewer of them."""

    def settle(self, images: Sequence[Sized], counts: Sequence[int]) -> None:
        """These were given; the next ones come."""


@dataclass(frozen=True)
class Even:
    """The same for each, or the same share."""

    pruner: Pruner
    refused: Mapping[int, PruneSIDError] = field(default_factory=dict)

    def counts(self, images: Sequence[Sized]) -> list[int]:
        return [self.pruner.mean_tokens(one.total) for one in images]

    def settle(self, images: Sequence[Sized], counts: Sequence[int]) -> None:
        """Nobody's share depends on another's."""


@dataclass(frozen=True)
class Planned:
    """Eq. 7 over a closed collection, every image of which was measured before. `plan`: tokens by number."""

    plan: Sequence[int]
    refused: Mapping[int, PruneSIDError]

    def counts(self, images: Sequence[Sized]) -> list[int]:
        return [self.plan[one.number] for one in images]

    def settle(self, images: Sequence[Sized], counts: Sequence[int]) -> None:
        """All is decided beforehand."""


@dataclass
class Streaming:
    """Eq. 7 over images that come one by one; the state moves on only with what was really kept."""

    stream: Stream
    refused: Mapping[int, PruneSIDError] = field(default_factory=dict)

    def counts(self, images: Sequence[Sized]) -> list[int]:
        return self.stream.spread([one.phi for one in images], [one.total for one in images])

    def settle(self, images: Sequence[Sized], counts: Sequence[int]) -> None:
        for one, count in zip(images, counts, strict=True):
            self.stream = self.stream.after(one.phi, one.total, count)


@dataclass(frozen=True)
class ItemInformation:
    """The information of one input and how many tokens it has; `held`: what it was given before, and keeps; or why it
    could not be measured; `is_recalled`: an earlier run measured it, and nothing is decoded."""

    source: str
    phi: float = 0.0
    total: int = 0
    held: int | None = None
    error: PruneSIDError | None = None
    number: int = 0
    is_recalled: bool = False
    regions: int = 0
    bytes: int = 0


NOT_HELD = -1


class Measurements:
    """Numbers in arrays: there may be millions."""

    def __init__(self, images: Iterable[ItemInformation]) -> None:
        self.phi, self.total, self.held = array("d"), array("l"), array("l")
        self.refused = dict[int, PruneSIDError]()
        for number, one in enumerate(images):
            self.phi.append(one.phi)
            self.total.append(one.total)
            self.held.append(NOT_HELD if one.held is None else one.held)
            if one.error:
                self.refused[number] = one.error

    def plan(self, pruner: Pruner, numbers: Sequence[int], already: Sequence[FixedItem] = ()) -> array[int]:
        """Tokens by number, for some of them."""
        phi, total = [self.phi[n] for n in numbers], [self.total[n] for n in numbers]
        plan = array("l", bytes(self.total.itemsize * len(self.total)))
        for number, count in zip(numbers, pruner.token_counts(phi, total, already), strict=True):
            plan[number] = count
        return plan


def planned(pruner: Pruner, found: Measurements) -> Planned:
    """Images already in the cache take part with what they were given, so that an interrupted run goes on as planned,
    and the average of a growing collection stays exact."""
    known = [number for number in range(len(found.phi)) if number not in found.refused]
    if not known:
        return Planned((), found.refused)
    plan = found.plan(pruner, known)
    held = [number for number in known if found.held[number] != NOT_HELD]
    if any(plan[number] != found.held[number] for number in held):  # images came or went: the new ones even it out
        fresh = [number for number in known if found.held[number] == NOT_HELD]
        plan = found.plan(pruner, fresh, [FixedItem(found.total[number], found.held[number]) for number in held])
    return Planned(plan, found.refused)


def streaming_allocator(pruner: Pruner, history: Iterable[IndexEntry]) -> TokenAllocator:
    """What is decided of each image when it comes; of those that get different shares, after what a cache holds, in
    the order in which it was written."""
    if not pruner.spreads_across_items:
        return Even(pruner)
    stream, sample = Stream(pruner.budget), pruner.sample
    if sample:
        stream = Stream(pruner.budget, math.fsum(sample) / len(sample), round(1 / MEMORY))
    for item in history:
        stream = stream.after(item.phi, item.total, item.kept)
    return Streaming(stream)
