"""Segments of items: their information, which can be stacked, and how their kept tokens make a token set."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection.result import Selection
from prunesid_cli.types import CLS_NOT_READ, Encoded, Segment, TokenSet

Information = tuple[float, ...]
"""phi = 1 - rho (Eq. 7) of each segment of an item."""
OPTIONAL_TENSORS = ("saliency", "cls", "extra")


def item_information(values: Information, encoded: Encoded) -> float:
    """phi of an item: the mean of its segments', weighted by their numbers of tokens."""
    sizes = [len(segment.features) for segment in encoded.segments]
    return math.fsum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


def group_stackable(segments: Sequence[Segment]) -> list[list[int]]:
    """Groups segments whose tensors can be stacked.

    Segments of one frame and of several are never grouped together: they may be pruned by different methods.

    Returns:
        Groups of positions in `segments`, ascending.
    """
    groups = defaultdict[object, list[int]](list)
    for position, segment in enumerate(segments):
        present = tuple(getattr(segment, name) is not None for name in OPTIONAL_TENSORS)
        groups[segment.features.shape, segment.frames > 1, present].append(position)
    return list(groups.values())


def assemble_token_set(
    item: Encoded, selections: Sequence[Selection], indices: Sequence[list[int]], budgets: Sequence[int], unpruned: bool
) -> TokenSet:
    """Puts the kept tokens of an item's segments together.

    Rows are ordered by slot; those of a single picture or frame keep the order of the method. A CLS token comes with
    the first token of its segment, except where nothing is pruned and the stock model does not read it. What a token
    carries beside its features (`Segment.extra`) is merged as the features are, and stands after them.

    Args:
        item: The encoded item.
        selections: What is kept of each segment.
        indices: The same kept indices as numbers, so that no device has to be waited for.
        budgets: How many tokens each segment may keep, CLS included.
        unpruned: Whether all tokens of the item are kept.
    """
    rows, slots = list[Tensor](), list[int]()
    for segment, selection, kept, budget in zip(item.segments, selections, indices, budgets, strict=True):
        if segment.cls is not None and budget and not (unpruned and segment.cls_slot == CLS_NOT_READ):
            rows.append(segment.cls[None])
            slots.append(segment.cls_slot)
        parts = [segment.features] if segment.extra is None else [segment.features, segment.extra]
        rows.append(torch.cat([selection.rows(part) for part in parts], -1))
        slots += [segment.slots[index] for index in kept] if segment.slots else kept
    tokens = torch.cat(rows)
    if len(item.segments) > 1 or item.segments[0].frames > 1:
        order = sorted(range(len(slots)), key=slots.__getitem__)
        tokens, slots = tokens[to_device(order, tokens.device)], [slots[row] for row in order]
    return TokenSet(tokens, tuple(slots), item.layout, unpruned)


def to_host(items: Sequence[TokenSet]) -> Sequence[TokenSet]:
    """Token sets with their tokens on the CPU, by one copy, since the host waits for each."""
    if all(item.tokens.device.type == "cpu" for item in items):
        return items
    rows = torch.cat([item.tokens for item in items]).cpu().split([len(item.tokens) for item in items])
    return [replace(item, tokens=tokens) for item, tokens in zip(items, rows, strict=True)]
