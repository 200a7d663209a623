"""Frames of a clip that are selected from together, so that what stands still in them need be kept once only.

A token's saliency is compared with those of other frames as it is. It says what share of a frame's attention the token
gets: what a frame's tokens receive adds up to 1, and what CLS gives them to the number of heads, less what it gives
itself. Scaled up to the same maximum, or turned into ranks, it would make as much of the noise in a blank frame as of
the one thing that another frame shows. Where frames are the same, the first one's tokens come first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from math import isqrt

import torch
from torch import Tensor

from prunesid_cli.errors import MediaError
from prunesid_cli.models.shared.token_grid import split_evenly
from prunesid_cli.selection.linalg.batched import LARGEST
from prunesid_cli.types import CLS_NOT_READ, Encoded, Layout, Segment

MOST_TOKENS = isqrt(LARGEST)
"""Of a window: of so many all similarities are there at once."""


def check_window(source: str, layout: Layout, frames: int) -> None:
    """Refuse windows of so many frames of a clip, where they are too many tokens for one selection.

    Raises:
        MediaError: they are.
    """
    regions = layout.regions[:frames]
    tokens = sum(region.rows * region.columns for region in regions)
    if layout.is_clip and len(regions) > 1 and tokens > MOST_TOKENS:
        fitting = MOST_TOKENS * len(regions) // tokens
        problem = f"{source}: a window of {len(regions)} frames has {tokens:,} tokens, more than the limit of"
        raise MediaError(
            f"{problem} {MOST_TOKENS:,}", f"give --window {fitting}" if fitting > 1 else "leave out --window"
        )


def join_windows(encoded: Encoded, frames: int) -> Encoded:
    """A clip with one segment for at most so many successive frames: as few as can be, of about one length. A picture
    stays as it is. Of frames that are cut into several segments, each is joined with those of its own place."""
    if frames == 1 or not encoded.layout.is_clip:
        return encoded
    firsts = [region.first for region in encoded.layout.regions]
    window = [number for number, part in enumerate(split_evenly(len(firsts), frames)) for _ in firsts[part]]
    groups = defaultdict[object, list[Segment]](list)
    for segment in encoded.segments:
        slots = _slots(segment)
        frame = bisect_right(firsts, slots[0]) - 1
        groups[window[frame], tuple(slot - firsts[frame] for slot in slots)].append(segment)
    return replace(encoded, segments=tuple(_one(group) for group in groups.values()))


def _one(frames: Sequence[Segment]) -> Segment:
    """Successive frames as one segment, whose CLS is that of the first."""
    first, parts = frames[0], [frames[0], *(_with_cls(frame) for frame in frames[1:])]
    return Segment(
        torch.cat([part.features for part in parts]),
        _cat([part.saliency for part in parts]),
        first.cls,
        _cat([part.extra for part in parts]),
        tuple(slot for part in parts for slot in _slots(part)),
        first.cls_slot,
        len(frames),
    )


def _with_cls(frame: Segment) -> Segment:
    """The CLS of a later frame among its tokens, where the stock model reads it: as a candidate, as salient as the
    most salient of them. One that the stock model does not read is left out."""
    if frame.cls is None or frame.cls_slot == CLS_NOT_READ:
        return frame
    saliency = frame.saliency
    return Segment(
        torch.cat([frame.cls[None], frame.features]),
        None if saliency is None else torch.cat([saliency.max()[None], saliency]),
        extra=frame.extra,
        slots=(frame.cls_slot, *_slots(frame)),
    )


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def _slots(segment: Segment) -> Sequence[int]:
    return range(len(segment.features)) if segment.slots is None else segment.slots
