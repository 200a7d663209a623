"""Run the methods of other authors over a batch, and the tensor operations that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from prunesid_cli.selection.linalg.batched import MAX_MATRIX_ENTRIES
from prunesid_cli.selection.linalg.per_image import map_images

Kept = TypeVar("Kept")
Rule = Callable[..., "Sequence[Kept]"]
"""Tensors [B, ...] or None, and the number of tokens to keep of each image (fewer than N) -> what is kept, B times."""


def keep_counts(features: Tensor, budgets: Sequence[int], num_cls: int) -> list[int]:
    """Return how many of the N tokens to keep of each image [B, N, C], without the CLS tokens that a budget counts."""
    return [min(max(budget - num_cls, 0), features.shape[1]) for budget in budgets]


@torch.no_grad()
def run_per_budget(rule: Rule[Kept], counts: Sequence[int], features: Tensor, *others: Tensor | None) -> list[Kept]:
    """Apply a rule that keeps the same number of tokens of all its images to a batch of different numbers.

    On a CPU the rule gets one image at a time, elsewhere the images of a group of `group_by_count`.

    Args:
        rule: Function of `features`, `others` and a number of tokens.
        counts: Number of tokens to keep of each image.
        features: [B, N, C].
        others: Further tensors [B, ...], or None.

    Returns:
        What the rule keeps of each image.
    """

    def run(rows: list[int]) -> Sequence[Kept]:
        is_range = rows[-1] - rows[0] < len(rows)
        subset = slice(rows[0], rows[-1] + 1) if is_range else rows  # a slice copies nothing
        return rule(*(None if tensor is None else tensor[subset] for tensor in (features, *others)), counts[rows[0]])

    with torch.autocast(features.device.type, enabled=False):
        if features.device.type == "cpu":
            return map_images(lambda row: run([row])[0], len(counts), features.device)
        kept = dict[int, Kept]()
        for rows in group_by_count(counts, features.shape[1]):
            kept.update(zip(rows, run(rows), strict=True))
        return [kept[row] for row in range(len(counts))]


def group_by_count(counts: Sequence[int], n: int) -> Iterator[list[int]]:
    """Group the rows of images that share a launch.

    They keep the same number of tokens, and their similarity matrices of n tokens fit into MAX_MATRIX_ENTRIES.
    """
    max_images = max(1, MAX_MATRIX_ENTRIES // n**2)
    for count in sorted(set(counts)):
        rows = [row for row, row_count in enumerate(counts) if row_count == count]
        yield from (rows[start : start + max_images] for start in range(0, len(rows), max_images))


def gather_row(matrix: Tensor, index: Tensor) -> Tensor:
    """Return the row `index` [B, 1] of each matrix [B, N, M] -> [B, M]."""
    return matrix.gather(1, index.unsqueeze(-1).expand(-1, 1, matrix.shape[-1])).squeeze(1)


def mask_to_indices(mask: Tensor, count: int) -> Tensor:
    """Return where a mask [B, N] is set, in ascending order [B, count] int64; each row has `count` set entries."""
    return (~mask).byte().argsort(dim=-1, stable=True)[:, :count]


def order_by_saliency(features: Tensor, saliency: Tensor | None) -> Tensor:
    """Order the tokens of each image by falling saliency, the first token first on ties.

    Args:
        features: [B, N, C].
        saliency: [B, N]; if None, the norm of the features takes its place.

    Returns:
        Token indices [B, N] int64.
    """
    if saliency is None:
        saliency = torch.stack([tokens.float().norm(dim=-1) for tokens in features])
    return saliency.argsort(dim=-1, descending=True, stable=True)
