"""Panels: which images of an item are drawn, and which token grids are drawn on each of them.

Grids that overlap, such as a whole picture and its tiles, need separate panels. Each frame of a clip is a panel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL.Image import Image, new

from prunesid_cli.types import Layout, Region

Slots = np.ndarray[Any, np.dtype[np.int64]]
OVERLAP_TOLERANCE = 1e-6
"""Overlap of two boxes that counts as rounding, as a share of the image's side."""
PADDING_COLOUR = (127, 127, 127)


@dataclass(frozen=True)
class Annotations:
    """What is drawn on panels.

    Attributes:
        kept: Slots of the kept tokens.
        groups: Slot -> group; empty if groups are not drawn.
        links: Slot of a suppressed token -> slot of the token that suppressed it; empty if links are not drawn.
    """

    kept: frozenset[int]
    groups: Mapping[int, int] = field(default_factory=dict)
    links: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """An image and the token grids on it, which do not overlap.

    Attributes:
        image: The picture, or one frame of a clip.
        regions: The grids; together they form a rectangle.
    """

    image: Image
    regions: tuple[Region, ...]

    @property
    def slots(self) -> Slots:
        """Slot of each patch of all grids, [rows, columns]."""
        tops = sorted({region.box[1] for region in self.regions})
        bands = []
        for top in tops:
            grids = [
                np.array(region.slots).reshape(region.rows, region.columns)
                for region in self.regions
                if region.box[1] == top
            ]
            bands.append(np.concatenate(grids, 1))
        return np.concatenate(bands, 0)

    def title(self, kept: frozenset[int]) -> str:
        """Return the size of the grid, or the time of the frame, with the number of kept patches."""
        slots, time = self.slots, self.regions[0].time
        rows, columns = slots.shape
        name = f"{columns} x {rows}" if time is None else f"{time:.1f} s"
        return f"{name}: {len(kept.intersection(slots.ravel().tolist()))} of {slots.size}"


def make_panels(frames: Sequence[Image], times: Sequence[float], layout: Layout) -> list[Panel]:
    """Distribute the token grids of an item over panels.

    Args:
        frames: The picture, or the frames of a clip.
        times: Seconds of each frame; empty for a picture.
        layout: The item's layout.

    Returns:
        Panels with the fewest grids first, so that a whole picture comes before its tiles.
    """
    region_groups = list[list[Region]]()
    for region in layout.regions:
        for group in region_groups:
            if not any(_overlap(region, other) for other in group):
                group.append(region)
                break
        else:
            region_groups.append([region])
    region_groups.sort(key=len)
    return [_pad(Panel(_frame_at(frames, times, group[0].time), tuple(group))) for group in region_groups]


def _overlap(first: Region, second: Region) -> bool:
    """Whether two grids cannot share a panel: their boxes overlap, or they belong to different frames."""
    if first.time != second.time:
        return True
    return all(
        min(first.box[axis + 2], second.box[axis + 2]) - max(first.box[axis], second.box[axis]) >= OVERLAP_TOLERANCE
        for axis in (0, 1)
    )


def _pad(panel: Panel) -> Panel:
    """Enlarge the image where its grids extend beyond it by a patch or more, as they do for padded input."""
    boxes = np.array([region.box for region in panel.regions])
    start, end = np.minimum(boxes.min(0)[:2], 0), np.maximum(boxes.max(0)[2:], 1)
    grid_shapes = np.array([(region.columns, region.rows) for region in panel.regions])
    patch = ((boxes[:, 2:] - boxes[:, :2]) / grid_shapes).min(0)
    if ((-start < patch) & (end - 1 < patch)).all():
        return panel
    padded = new("RGB", tuple(np.rint((end - start) * panel.image.size).astype(int).tolist()), PADDING_COLOUR)
    padded.paste(panel.image, tuple(np.rint(-start * panel.image.size).astype(int).tolist()))
    moved_boxes = ((boxes.reshape(-1, 2, 2) - start) / (end - start)).reshape(-1, 4).tolist()
    regions = [replace(region, box=tuple(box)) for region, box in zip(panel.regions, moved_boxes, strict=True)]
    return Panel(padded, tuple(regions))


def _frame_at(frames: Sequence[Image], times: Sequence[float], time: float | None) -> Image:
    """The frame nearest to a time, the first of several that are equally near; without a time, the picture."""
    if time is None:
        return frames[0]
    return frames[min(range(len(times)), key=lambda index: abs(times[index] - time))]
