"""How many tokens each image of a run gets: as many as all others, or its share of a planned or a running average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.pruner import Pruner
from prunesid_cli.selection.budget import MEMORY, Stream, limits
from prunesid_cli.tokencache import Item


class Allotment(Protocol):
    """`refused`: inputs that can get nothing, and why."""

    @property
    def refused(self) -> Mapping[str, PruneSIDError]: ...

    def counts(self, sources: Sequence[str], values: Sequence[float]) -> list[int]:
        """Tokens for the next images, of these sources and this information. May be asked again for fewer of them."""

    def settle(self, values: Sequence[float], counts: Sequence[int]) -> None:
        """These were given; the next ones come."""


@dataclass(frozen=True)
class Even:
    """The same for each."""

    count: int
    refused: Mapping[str, PruneSIDError] = field(default_factory=dict)

    def counts(self, sources: Sequence[str], values: Sequence[float]) -> list[int]:
        return [self.count] * len(sources)

    def settle(self, values: Sequence[float], counts: Sequence[int]) -> None:
        """Nobody's share depends on another's."""


@dataclass(frozen=True)
class Planned:
    """Eq. 7 over a closed collection, every image of which was measured before."""

    plan: Mapping[str, int]
    refused: Mapping[str, PruneSIDError]

    def counts(self, sources: Sequence[str], values: Sequence[float]) -> list[int]:
        return [self.plan[source] for source in sources]

    def settle(self, values: Sequence[float], counts: Sequence[int]) -> None:
        """All is decided beforehand."""


@dataclass
class Running:
    """Eq. 7 over images that come one by one; the state moves on only with what was really kept."""

    stream: Stream
    refused: Mapping[str, PruneSIDError] = field(default_factory=dict)

    def counts(self, sources: Sequence[str], values: Sequence[float]) -> list[int]:
        return self.stream.spread(values)

    def settle(self, values: Sequence[float], counts: Sequence[int]) -> None:
        for value, count in zip(values, counts, strict=True):
            self.stream = self.stream.after(value, count)


@dataclass(frozen=True)
class Measured:
    """The information of one input; `held`: what it was given before, and keeps; or why it could not be measured."""

    source: str
    phi: float = 0.0
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
    plan = dict(zip(known, pruner.counts([one.phi for one in known.values()]), strict=True))
    held = {source: one.held for source, one in known.items() if one.held is not None}
    if any(plan[source] != count for source, count in held.items()):  # images came or went: the new ones even it out
        fresh = [one for one in known.values() if one.held is None]
        counts = pruner.counts([one.phi for one in fresh], tuple(held.values()))
        plan = dict(zip([one.source for one in fresh], counts, strict=True))
    return Planned(plan, refused)


def running(pruner: Pruner, history: Iterable[Item]) -> Running:
    """A stream that goes on after what a cache holds, in the order in which it was written."""
    total = pruner.vision.total
    mean = pruner.budget.tokens(total)
    stream = Stream(mean, *limits(mean, total), pruner.phi_ref, round(1 / MEMORY) if pruner.sample else 0)
    for item in history:
        stream = stream.after(item.phi, len(item.kept))
    return Running(stream)


def even(pruner: Pruner) -> Even:
    total = pruner.vision.total
    return Even(min(pruner.budget.tokens(total), total))
