"""Segments of items: their information, which of them can be stacked, and what is kept of them put together again."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection.result import Selection
from prunesid_cli.types import CLS_NOT_READ, Encoded, Segment, TokenSet

Information = tuple[float, ...]
"""phi of each segment of an item."""
PARTS = ("saliency", "cls", "extra")
"""What a segment may have beside its features."""


def of_item(values: Information, encoded: Encoded) -> float:
    """The information of an item: the average of its segments', by their tokens."""
    sizes = [len(segment.features) for segment in encoded.segments]
    return math.fsum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def alike(segments: Sequence[Segment]) -> dict[object, list[int]]:
    """The numbers of segments that can be stacked, in their order."""
    groups = defaultdict[object, list[int]](list)
    for number, one in enumerate(segments):
        groups[one.features.shape, one.frames > 1, tuple(getattr(one, part) is None for part in PARTS)].append(number)
    return groups


def stacked(parts: Sequence[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.stack(there) if there else None


def assemble(
    item: Encoded, chosen: Sequence[tuple[Selection, list[int]]], shares: Sequence[int], whole: bool
) -> TokenSet:
    """The kept rows of all segments of an item, by slot; of a single picture or frame, in the order of the method.

    What else a token carries is merged as its features are, and stands where they stand.

    A CLS token comes with its segment's first token, unless nothing is pruned and the stock model does not read it.
    """
    rows, slots = list[Tensor](), list[int]()
    for segment, (kept, numbers), share in zip(item.segments, chosen, shares, strict=True):
        if segment.cls is not None and share and not (whole and segment.cls_slot == CLS_NOT_READ):
            rows.append(segment.cls[None])
            slots.append(segment.cls_slot)
        whole_rows = [segment.features] if segment.extra is None else [segment.features, segment.extra]
        rows.append(torch.cat([kept.rows(part) for part in whole_rows], -1))
        slots += [segment.slots[number] for number in numbers] if segment.slots else numbers
    tokens = torch.cat(rows)
    if len(item.segments) > 1 or item.segments[0].frames > 1:
        order = sorted(range(len(slots)), key=slots.__getitem__)
        tokens, slots = tokens[to_device(order, tokens.device)], [slots[i] for i in order]
    return TokenSet(tokens, tuple(slots), item.layout, whole)
