"""What is drawn beside what: a picture whole and in tiles, or each frame of a clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL.Image import Image, new

from prunesid_cli.types import Layout, Region

Slots = np.ndarray[Any, np.dtype[np.int64]]
"""[rows, columns]: the slot of each patch."""
TOUCH = 1e-6
"""Two boxes may overlap by so much without overlapping."""
PADDING = (127, 127, 127)


@dataclass(frozen=True)
class Marks:
    """kept    slots of the tokens that are kept
    groups  the group of a token; empty where groups are not drawn
    links   the slot of a token that was suppressed -> that of the one that suppressed it; empty where not drawn
    """

    kept: frozenset[int]
    groups: Mapping[int, int] = field(default_factory=dict)
    links: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Panel:
    """A picture and rasters that show parts of it side by side."""

    image: Image
    regions: tuple[Region, ...]

    @property
    def slots(self) -> Slots:
        """All rasters as one."""
        tops = sorted({region.box[1] for region in self.regions})
        bands = [[region for region in self.regions if region.box[1] == top] for top in tops]
        return np.concatenate([np.concatenate([_raster(region) for region in band], 1) for band in bands], 0)

    def title(self, kept: frozenset[int]) -> str:
        slots, time = self.slots, self.regions[0].time
        rows, columns = slots.shape
        name = f"{columns} x {rows}" if time is None else f"{time:.1f} s"
        return f"{name}: {len(kept.intersection(slots.ravel().tolist()))} of {slots.size}"


def _raster(region: Region) -> Slots:
    return np.array(region.slots).reshape(region.rows, region.columns)


def panels(frames: Sequence[Image], times: Sequence[float], layout: Layout) -> list[Panel]:
    """Rasters that overlap get panels of their own, the whole of a picture first; times: of the frames of a clip."""
    together = list[list[Region]]()
    for region in layout.regions:
        for some in together:
            if all(_are_apart(region, other) for other in some):
                some.append(region)
                break
        else:
            together.append([region])
    return [padded(Panel(_frame(frames, times, some[0]), tuple(some))) for some in sorted(together, key=len)]


def _are_apart(one: Region, other: Region) -> bool:
    apart = [
        min(one.box[axis + 2], other.box[axis + 2]) - max(one.box[axis], other.box[axis]) < TOUCH for axis in (0, 1)
    ]
    return one.time == other.time and any(apart)


def padded(panel: Panel) -> Panel:
    """With all that its rasters show, where they show a patch or more beside the picture."""
    boxes = np.array([region.box for region in panel.regions])
    start, end = np.minimum(boxes.min(0)[:2], 0), np.maximum(boxes.max(0)[2:], 1)
    shape = np.array([(region.columns, region.rows) for region in panel.regions])
    patch = ((boxes[:, 2:] - boxes[:, :2]) / shape).min(0)
    if ((-start < patch) & (end - 1 < patch)).all():
        return panel
    paper = new("RGB", tuple(np.rint((end - start) * panel.image.size).astype(int).tolist()), PADDING)
    paper.paste(panel.image, tuple(np.rint(-start * panel.image.size).astype(int).tolist()))
    moved = (boxes.reshape(-1, 2, 2) - start) / (end - start)
    regions = zip(panel.regions, moved.reshape(-1, 4).tolist(), strict=True)
    return Panel(paper, tuple(replace(region, box=tuple(box)) for region, box in regions))


def _frame(frames: Sequence[Image], times: Sequence[float], region: Region) -> Image:
    """The frame of a region; of one that stands for several, the first."""
    wanted = region.time
    if wanted is None:
        return frames[0]
    return frames[min(range(len(times)), key=lambda number: abs(times[number] - wanted))]
