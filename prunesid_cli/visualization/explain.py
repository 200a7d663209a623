"""What was kept of one item, and why: each segment with its place in the picture, its share, and its groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prunesid_cli.errors import NonFiniteError
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.shared.token_grid import Box
from prunesid_cli.pipeline.compress import not_finite, see
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.segments import of_item
from prunesid_cli.selection import GROUPED, SUPPRESSING, load_method
from prunesid_cli.selection.methods.plus import grouped
from prunesid_cli.selection.methods.prunesid import Explanation, reasons
from prunesid_cli.selection.psca import to_fp64_device
from prunesid_cli.types import Encoded, Layout, Region, Segment, TokenSet
from prunesid_cli.visualization.panels import Marks

Place = tuple[int, int, int]
"""Of a slot: the number of its region, row and column in that."""


@dataclass(frozen=True)
class Part:
    """A segment: a rectangle of the raster of a region, or the same one of several: a window of frames.

    regions        their numbers
    times          of frames; empty for a picture
    top, left      where in the raster of a region the rectangle begins
    rows, columns  of the rectangle
    box            what of the picture it shows
    phi, share     its information, and how many tokens it was given, CLS included
    slots          N, in raster order, region by region
    saliency       N, the model's own; None where it has none
    groups         N, the group of each token; None where the method has none, or nothing was dropped
    why            None where the method does not suppress, or nothing was dropped
    """

    regions: tuple[int, ...]
    times: tuple[float, ...]
    top: int
    left: int
    rows: int
    columns: int
    box: Box
    phi: float
    share: int
    slots: tuple[int, ...]
    saliency: tuple[float, ...] | None
    groups: tuple[int, ...] | None
    why: Explanation | None

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
    def seen(self) -> float:
        """Share of the picture, or of each frame, that the model's preparation does not crop off."""
        left, top, right, bottom = zip(*(region.box for region in self.tokens.layout.regions), strict=True)
        wide, high = min(max(right), 1) - max(min(left), 0), min(max(bottom), 1) - max(min(top), 0)
        return wide * high  # without what was padded

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
        known = [places[slot] for slot in slots if slot in places]  # among those of a window may be CLS tokens
        (number, top, left), (_, bottom, right) = known[0], known[-1]
        numbers = tuple(sorted({one for one, _, _ in known}))
        times = tuple(time for one in numbers if (time := item.layout.regions[one].time) is not None)
        shape = bottom + 1 - top, right + 1 - left
        box = _box(item.layout.regions[number], top, left, *shape)
        saliency = None if segment.saliency is None else tuple(segment.saliency.float().tolist())
        groups, why = _reasons(pruner, segment, share)
        yield Part(numbers, times, top, left, *shape, box, phi, share, slots, saliency, groups, why)


def _box(region: Region, top: int, left: int, rows: int, columns: int) -> Box:
    """What a part of a region's raster shows."""
    x, y, across, down = *region.box[:2], region.box[2] - region.box[0], region.box[3] - region.box[1]
    return (
        x + across * left / region.columns,
        y + down * top / region.rows,
        x + across * (left + columns) / region.columns,
        y + down * (top + rows) / region.rows,
    )


def _places(layout: Layout) -> Mapping[int, Place]:
    return {
        slot: (number, *divmod(at, region.columns))
        for number, region in enumerate(layout.regions)
        for at, slot in enumerate(region.slots)
    }


def _reasons(pruner: Pruner, segment: Segment, share: int) -> tuple[tuple[int, ...] | None, Explanation | None]:
    """The group of each token, and why those that are kept are."""
    if pruner.method not in GROUPED or share >= segment.capacity:
        return None, None
    features = to_fp64_device(segment.features[None])
    saliency = None if segment.saliency is None else to_fp64_device(segment.saliency[None])
    if pruner.method not in SUPPRESSING:
        return tuple(grouped(features, saliency, [share])[0][0].tolist()), None
    chosen = pruner.chosen_for(segment)
    method = load_method(chosen) if isinstance(chosen, str) else chosen
    (why,) = reasons(method, features, saliency, [share], int(segment.cls is not None))
    return tuple(why.group.tolist()), why
