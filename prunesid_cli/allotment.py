"""How many tokens each image of a run gets: as many as all others, or its share of a planned or a running average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.pruner import Given, Pruner
from prunesid_cli.selection.budget import MEMORY, Stream
from prunesid_cli.tokencache import Known


class Sized(Protocol):
    """An input of known size and information (phi)."""

    @property
    def source(self) -> str: ...

    @property
    def phi(self) -> float: ...

    @property
    def total(self) -> int: ...


class Allotment(Protocol):
    """`refused`: inputs that can get nothing, and why."""

    @property
    def refused(self) -> Mapping[str, PruneSIDError]: ...

    def counts(self, images: Sequence[Sized]) -> list[int]:
        """Tokens for the next images. May be asked again for fewer of them."""

    def settle(self, images: Sequence[Sized], counts: Sequence[int]) -> None:
        """These were given; the next ones come."""


@dataclass(frozen=True)
class Even:
    """The same for each, or the same share."""

    pruner: Pruner
    refused: Mapping[str, PruneSIDError] = field(default_factory=dict)

    def counts(self, images: Sequence[Sized]) -> list[int]:
        return [self.pruner.mean(one.total) for one in images]

    def settle(self, images: Sequence[Sized], counts: Sequence[int]) -> None:
        """Nobody's share depends on another's."""


@dataclass(frozen=True)
class Planned:
    """Eq. 7 over a closed collection, every image of which was measured before."""

    plan: Mapping[str, int]
    refused: Mapping[str, PruneSIDError]

    def counts(self, images: Sequence[Sized]) -> list[int]:
        return [self.plan[one.source] for one in images]

    def settle(self, images: Sequence[Sized], counts: Sequence[int]) -> None:
        """All is decided beforehand."""


@dataclass
class Running:
    """Eq. 7 over images that come one by one; the state moves on only with what was really kept."""

    stream: Stream
    refused: Mapping[str, PruneSIDError] = field(default_factory=dict)

    def counts(self, images: Sequence[Sized]) -> list[int]:
        return self.stream.spread([one.phi for one in images], [one.total for one in images])

    def settle(self, images: Sequence[Sized], counts: Sequence[int]) -> None:
        for one, count in zip(images, counts, strict=True):
            self.stream = self.stream.after(one.phi, one.total, count)


@dataclass(frozen=True)
class Measured:
    """The information of one input and how many tokens it has; `held`: what it was given before, and keeps; or why it
    could not be measured."""

    source: str
    phi: float = 0.0
    total: int = 0
    held: int | None = None
    error: PruneSIDError | None = None


def planned(pruner: Pruner, images: Iterable[Measured]) -> Planned:
    """Images already in the cache take part with what they were given, so that an interrupted run goes on as planned,
    and the average of a growing collection stays exact."""
    images = list(images)
    refused = {one.source: one.error for one in images if one.error}
    known = {one.source: one for one in images if not one.error}
    if not known:
        return Planned({}, refused)
    plan = _counts(pruner, known.values())
    held = {source: Given(one.total, one.held) for source, one in known.items() if one.held is not None}
    if any(plan[source] != one.tokens for source, one in held.items()):  # images came or went: the new ones even it out
        plan = _counts(pruner, [one for one in known.values() if one.held is None], tuple(held.values()))
    return Planned(plan, refused)


def _counts(pruner: Pruner, images: Iterable[Measured], already: Sequence[Given] = ()) -> dict[str, int]:
    images = list(images)
    counts = pruner.counts([one.phi for one in images], [one.total for one in images], already)
    return dict(zip([one.source for one in images], counts, strict=True))


def running(pruner: Pruner, history: Iterable[Known]) -> Running:
    """A stream that goes on after what a cache holds, in the order in which it was written."""
    stream, sample = Stream(pruner.budget), pruner.sample
    if sample:
        stream = Stream(pruner.budget, math.fsum(sample) / len(sample), round(1 / MEMORY))
    for item in history:
        stream = stream.after(item.phi, item.total, item.kept)
    return Running(stream)
