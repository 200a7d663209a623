"""Explanation of one pruned item: where each segment lies in the image, its budget, its groups and its suppression."""

from __future__ import annotations

from dataclasses import dataclass

from prunesid_cli.errors import NonFiniteError, non_finite_error
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.shared.token_grid import Box
from prunesid_cli.pipeline.ask import encode_media
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.segments import item_information
from prunesid_cli.runtime.device import to_fp64_device
from prunesid_cli.selection import GROUPING_METHODS, load_method
from prunesid_cli.selection.methods.explanation import Explanation, explain_method
from prunesid_cli.types import Encoded, Layout, Region, Segment, TokenSet
from prunesid_cli.visualization.panels import Annotations

GridPosition = tuple[int, int, int]
"""Index of a region, and row and column in it."""


@dataclass(frozen=True)
class SegmentExplanation:
    """One segment: a rectangle of a region's grid, or the same rectangle of several regions (a window of frames).

    Attributes:
        regions: Indices of the regions.
        times: Seconds of the frames; empty for a picture.
        top: First row of the rectangle in a region's grid.
        left: First column of the rectangle.
        rows: Height of the rectangle in tokens.
        columns: Width of the rectangle in tokens.
        box: The part of the image that the rectangle shows, as shares of its sides.
        phi: Information of the segment.
        budget: Number of tokens to keep, CLS included.
        slots: Slot of each token [N], in raster order, region by region.
        saliency: The model's saliency of each token [N]; None if the model has none.
        selection: Stages of the selection; None if the method has no groups or nothing was dropped.
    """

    regions: tuple[int, ...]
    times: tuple[float, ...]
    top: int
    left: int
    rows: int
    columns: int
    box: Box
    phi: float
    budget: int
    slots: tuple[int, ...]
    saliency: tuple[float, ...] | None
    selection: Explanation | None

    @property
    def groups(self) -> list[int] | None:
        """The group of each token [N], or None."""
        return None if self.selection is None else self.selection.group.tolist()

    @property
    def suppressed_by(self) -> list[int | None] | None:
        """For each token [N], the slot of the token that suppressed it, or None if none did."""
        if self.selection is None:
            return None
        return [None if index < 0 else self.slots[index] for index in self.selection.suppressor.tolist()]


@dataclass(frozen=True)
class PruningExplanation:
    """What was kept of an item, and why.

    Attributes:
        tokens: The kept tokens.
        phi: Information of the item.
        segments: One explanation per segment.
    """

    tokens: TokenSet
    phi: float
    segments: tuple[SegmentExplanation, ...]

    @property
    def annotations(self) -> Annotations:
        """All that can be drawn of it."""
        groups, links = dict[int, int](), dict[int, int]()
        for segment in self.segments:
            groups |= zip(segment.slots, segment.groups or (), strict=False)
            for slot, suppressor in zip(segment.slots, segment.suppressed_by or (), strict=False):
                if suppressor is not None:
                    links[slot] = suppressor
        return Annotations(frozenset(self.tokens.slots), groups, links)


def explain(pruner: Pruner, media: Media) -> PruningExplanation:
    """Prune one picture or clip as `ask` does, and explain the result.

    Raises:
        NonFiniteError: The vision tower's output holds NaN or infinity.
    """
    (item,) = encode_media(pruner, [media])
    (values,) = pruner.information([item])
    phi = item_information(values, item)
    (count,) = pruner.token_counts([phi], [item.layout.total])
    try:
        (tokens,) = pruner.keep([item], [count], [values])
    except NonFiniteError as error:
        raise non_finite_error(media.source) from error
    positions = _grid_positions(item.layout)
    budgets = pruner.segment_budgets(item, count, values)
    segments = [
        _explain_segment(pruner, item.layout, positions, segment, segment_phi, budget)
        for segment, segment_phi, budget in zip(item.segments, values, budgets, strict=True)
    ]
    return PruningExplanation(tokens, phi, tuple(segments))


def find_groups(pruner: Pruner, item: Encoded, count: int, information: tuple[float, ...]) -> dict[int, int]:
    """Slot -> group, of an item whose method groups tokens; empty for other methods.

    Args:
        pruner: Selects the tokens.
        item: The item.
        count: How many tokens it keeps.
        information: Information of each of its segments.
    """
    groups = dict[int, int]()
    if pruner.method not in GROUPING_METHODS or count >= item.layout.total:
        return groups
    budgets = pruner.segment_budgets(item, count, information)
    for segment, budget in zip(item.segments, budgets, strict=True):
        if selection := _explain_selection(pruner, segment, budget):
            slots = segment.slots or tuple(range(len(segment.features)))
            groups |= zip(slots, selection.group.tolist(), strict=True)
    return groups


def _explain_segment(
    pruner: Pruner, layout: Layout, positions: dict[int, GridPosition], segment: Segment, phi: float, budget: int
) -> SegmentExplanation:
    slots = segment.slots or tuple(range(len(segment.features)))
    # A window of frames may hold CLS tokens, which have no place in a grid.
    located = [positions[slot] for slot in slots if slot in positions]
    (first_region, top, left), (_, bottom, right) = located[0], located[-1]
    regions = tuple(sorted({region for region, _, _ in located}))
    times = [layout.regions[region].time for region in regions]
    rows, columns = bottom + 1 - top, right + 1 - left
    return SegmentExplanation(
        regions=regions,
        times=tuple(time for time in times if time is not None),
        top=top,
        left=left,
        rows=rows,
        columns=columns,
        box=_sub_box(layout.regions[first_region], top, left, rows, columns),
        phi=phi,
        budget=budget,
        slots=slots,
        saliency=None if segment.saliency is None else tuple(segment.saliency.float().tolist()),
        selection=_explain_selection(pruner, segment, budget),
    )


def _sub_box(region: Region, top: int, left: int, rows: int, columns: int) -> Box:
    """The part of the image that a rectangle of a region's grid shows."""
    x, y = region.box[:2]
    width, height = region.box[2] - x, region.box[3] - y
    return (
        x + width * left / region.columns,
        y + height * top / region.rows,
        x + width * (left + columns) / region.columns,
        y + height * (top + rows) / region.rows,
    )


def _grid_positions(layout: Layout) -> dict[int, GridPosition]:
    """Slot -> its position, for all slots in grids."""
    positions = dict[int, GridPosition]()
    for number, region in enumerate(layout.regions):
        for index, slot in enumerate(region.slots):
            positions[slot] = (number, *divmod(index, region.columns))
    return positions


def _explain_selection(pruner: Pruner, segment: Segment, budget: int) -> Explanation | None:
    """The stages of the selection; None if the method has no groups or nothing is dropped."""
    if pruner.method not in GROUPING_METHODS or budget >= segment.capacity:
        return None
    features = to_fp64_device(segment.features[None])
    saliency = None if segment.saliency is None else to_fp64_device(segment.saliency[None])
    name = pruner.method_for(segment)
    method = load_method(name) if isinstance(name, str) else name
    (selection,) = explain_method(method, features, saliency, [budget], num_cls=int(segment.cls is not None))
    return selection
