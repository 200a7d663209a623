"""What was kept of one item, and why: each segment with its place in the picture, its share, and its groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prunesid_cli.drawing.panels import Marks
from prunesid_cli.errors import NonFiniteError
from prunesid_cli.media import Media
from prunesid_cli.pipeline import not_finite, see
from prunesid_cli.pruner import Pruner
from prunesid_cli.segments import of_item
from prunesid_cli.selection import GROUPED, load_method
from prunesid_cli.selection.prunesid import Explanation, reasons
from prunesid_cli.selection.psca import where_exact
from prunesid_cli.types import Encoded, Layout, Segment, TokenSet

Place = tuple[int, int, int]
"""Of a slot: the number of its region, row and column in that."""


@dataclass(frozen=True)
class Part:
    """A segment: a rectangle of the raster of a region.

    region, top, left  number of the region, and where in its raster the rectangle begins
    rows, columns      of the rectangle
    box, time          as of a region
    phi, share         its information, and how many tokens it was given, CLS included
    slots              N, in raster order
    saliency           N, the model's own; None where it has none
    why                None where the method has no groups, or nothing was dropped
    """

    region: int
    top: int
    left: int
    rows: int
    columns: int
    box: tuple[float, float, float, float]
    time: float | None
    phi: float
    share: int
    slots: tuple[int, ...]
    saliency: tuple[float, ...] | None
    why: Explanation | None

    @property
    def groups(self) -> list[int] | None:
        """The group of each token."""
        return self.why.group.tolist() if self.why else None

    @property
    def suppressed_by(self) -> list[int | None] | None:
        """The slot of the token that suppressed each; None: none did."""
        if self.why is None:
            return None
        return [None if one < 0 else self.slots[one] for one in self.why.suppressor.tolist()]


@dataclass(frozen=True)
class Explained:
    tokens: TokenSet
    phi: float
    parts: tuple[Part, ...]

    @property
    def marks(self) -> Marks:
        """What is drawn of it."""
        groups, links = dict[int, int](), dict[int, int]()
        for part in self.parts:
            groups |= zip(part.slots, part.groups or (), strict=False)
            pairs = zip(part.slots, part.suppressed_by or (), strict=False)
            links |= {slot: by for slot, by in pairs if by is not None}
        return Marks(frozenset(self.tokens.slots), groups, links)


def explained(pruner: Pruner, media: Media) -> Explained:
    """Prune one picture or clip, as `ask` would.

    Raises:
        NonFiniteError: the tower gives what is not finite.
    """
    (item,) = see(pruner, [media])
    ((values, phi),) = ((own, of_item(own, item)) for own in pruner.information([item]))
    (count,) = pruner.counts([phi], [item.layout.total])
    try:
        (tokens,) = pruner.keep([item], [count], [values])
    except NonFiniteError as error:
        raise not_finite(media.source) from error
    return Explained(tokens, phi, tuple(_parts(pruner, item, values, pruner.shares(item, count, values))))


def _parts(pruner: Pruner, item: Encoded, values: tuple[float, ...], shares: list[int]) -> Iterator[Part]:
    places = _places(item.layout)
    for segment, phi, share in zip(item.segments, values, shares, strict=True):
        slots = segment.slots or tuple(range(len(segment.features)))
        (number, top, left), (_, bottom, right) = places[slots[0]], places[slots[-1]]
        region, rows, columns = item.layout.regions[number], bottom + 1 - top, right + 1 - left
        x, y, across, down = *region.box[:2], region.box[2] - region.box[0], region.box[3] - region.box[1]
        box = (
            x + across * left / region.columns,
            y + down * top / region.rows,
            x + across * (right + 1) / region.columns,
            y + down * (bottom + 1) / region.rows,
        )
        saliency = None if segment.saliency is None else tuple(segment.saliency.float().tolist())
        why = _why(pruner, segment, share)
        yield Part(number, top, left, rows, columns, box, region.time, phi, share, slots, saliency, why)


def _places(layout: Layout) -> Mapping[int, Place]:
    return {
        slot: (number, *divmod(at, region.columns))
        for number, region in enumerate(layout.regions)
        for at, slot in enumerate(region.slots)
    }


def _why(pruner: Pruner, segment: Segment, share: int) -> Explanation | None:
    if pruner.method not in GROUPED or share >= segment.capacity:
        return None
    chosen = pruner.chosen
    method = load_method(chosen) if isinstance(chosen, str) else chosen
    features, saliency = segment.features[None], None if segment.saliency is None else segment.saliency[None]
    return reasons(
        method,
        where_exact(features),
        None if saliency is None else where_exact(saliency),
        [share],
        int(segment.summary is not None),
    )[0]
