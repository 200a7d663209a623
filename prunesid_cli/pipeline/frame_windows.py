"""Windows of frames: successive frames of a clip are pruned together, so that what stands still is kept once.

The saliencies of a window's frames are compared as they are. They say which share of a frame's attention a token gets:
what the tokens of a frame receive adds up to 1, and what CLS gives them to the number of heads, less what it gives
itself. Scaling each frame to the same maximum, or using ranks, would give the noise of a blank frame the same weight as
the one object that another frame shows. Where frames are equal, the tokens of the first one come first.
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
from prunesid_cli.selection.linalg.batched import MAX_MATRIX_ENTRIES
from prunesid_cli.types import CLS_NOT_READ, Encoded, Layout, Segment

MAX_WINDOW_TOKENS = isqrt(MAX_MATRIX_ENTRIES)
"""Tokens of a window: their similarities to each other are in memory at once."""


def check_window(source: str, layout: Layout, frames: int) -> None:
    """Checks that windows of `frames` frames of a clip are not too large for one selection.

    Raises:
        MediaError: They have more than `MAX_WINDOW_TOKENS` tokens.
    """
    regions = layout.regions[:frames]
    tokens = sum(region.rows * region.columns for region in regions)
    if layout.is_clip and len(regions) > 1 and tokens > MAX_WINDOW_TOKENS:
        fitting = MAX_WINDOW_TOKENS * len(regions) // tokens
        raise MediaError(
            f"{source}: a window of {len(regions)} frames has {tokens:,} tokens, more than the limit of "
            f"{MAX_WINDOW_TOKENS:,}",
            f"give --window {fitting}" if fitting > 1 else "leave out --window",
        )


def join_windows(encoded: Encoded, frames: int) -> Encoded:
    """Joins successive frames of a clip into segments of at most `frames` frames. Pictures are returned unchanged.

    There are as few windows as possible, of about equal length. If frames have several segments each, those at the same
    place in their frame are joined.
    """
    if frames == 1 or not encoded.layout.is_clip:
        return encoded
    first_slots = [region.first for region in encoded.layout.regions]
    windows = split_evenly(len(first_slots), frames)
    window_of_frame = [number for number, window in enumerate(windows) for _ in first_slots[window]]
    groups = defaultdict[object, list[Segment]](list)
    for segment in encoded.segments:
        slots = _slots(segment)
        frame = bisect_right(first_slots, slots[0]) - 1
        place_in_frame = tuple(slot - first_slots[frame] for slot in slots)
        groups[window_of_frame[frame], place_in_frame].append(segment)
    return replace(encoded, segments=tuple(_join(group) for group in groups.values()))


def _join(frames: Sequence[Segment]) -> Segment:
    """Successive frames as one segment, with the CLS token of the first frame."""
    first, parts = frames[0], [frames[0], *(_with_cls_as_token(frame) for frame in frames[1:])]
    return Segment(
        features=torch.cat([part.features for part in parts]),
        saliency=_cat([part.saliency for part in parts]),
        cls=first.cls,
        extra=_cat([part.extra for part in parts]),
        slots=tuple(slot for part in parts for slot in _slots(part)),
        cls_slot=first.cls_slot,
        frames=len(frames),
    )


def _with_cls_as_token(frame: Segment) -> Segment:
    """A later frame with its CLS token among its tokens, as salient as the most salient of them.

    A CLS token that the stock model does not read is left out.
    """
    if frame.cls is None or frame.cls_slot == CLS_NOT_READ:
        return frame
    saliency = frame.saliency
    return Segment(
        features=torch.cat([frame.cls[None], frame.features]),
        saliency=None if saliency is None else torch.cat([saliency.max()[None], saliency]),
        extra=frame.extra,
        slots=(frame.cls_slot, *_slots(frame)),
    )


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _slots(segment: Segment) -> Sequence[int]:
    return range(len(segment.features)) if segment.slots is None else segment.slots
