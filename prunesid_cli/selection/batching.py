"""How the methods that others published run over a batch: as many tokens as asked of each image, by one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import TypeVar

import torch
from torch import Tensor

from prunesid_cli.selection.linalg.batched import LARGEST
from prunesid_cli.selection.linalg.per_image import each_image
from prunesid_cli.selection.similarity import unit_tokens

Kept = TypeVar("Kept")
Rule = Callable[..., "Sequence[Kept]"]
"""Tensors [B, ...] or None, tokens to keep of each image (fewer than N) -> what is kept, B times."""


def keep_counts(features: Tensor, budgets: Sequence[int], num_cls: int) -> list[int]:
    """How many tokens to keep of each image, without what is reserved."""
    return [min(max(budget - num_cls, 0), features.shape[1]) for budget in budgets]


@torch.no_grad()
def run_per_budget(rule: Rule[Kept], wanted: Sequence[int], features: Tensor, *others: Tensor | None) -> list[Kept]:
    """`rule` of the features and others of every image, and what is wanted: on a CPU of each alone, elsewhere of those
    that `launches` puts together."""

    def of(rows: list[int]) -> Sequence[Kept]:
        some = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] < len(rows) else rows  # a slice copies nothing
        return rule(*(None if tensor is None else tensor[some] for tensor in (features, *others)), wanted[rows[0]])

    with torch.autocast(features.device.type, enabled=False):
        if features.device.type == "cpu":
            return each_image(lambda row: of([row])[0], len(wanted), features.device)
        kept = [pair for rows in launches(wanted, features.shape[1]) for pair in zip(rows, of(rows), strict=True)]
        return [one for _, one in sorted(kept, key=itemgetter(0))]


def launches(wanted: Sequence[int], n: int) -> Iterator[list[int]]:
    """Images that share a launch: of the same target, as many as similarities of n tokens fit into memory for."""
    most = max(1, LARGEST // n**2)
    for target in sorted(set(wanted)):
        rows = [row for row, own in enumerate(wanted) if own == target]
        yield from (rows[start : start + most] for start in range(0, len(rows), most))


def cosines(features: Tensor) -> Tensor:
    """features [B, N, C] -> similarity of all tokens to all [B, N, N] fp32."""
    unit = unit_tokens(features)
    return unit @ unit.mT


def row_of(matrix: Tensor, at: Tensor) -> Tensor:
    """matrix [B, N, M], at [B, 1] -> the row of each image [B, M]."""
    return matrix.gather(1, at.unsqueeze(-1).expand(-1, 1, matrix.shape[-1])).squeeze(1)


def places(mask: Tensor, count: int) -> Tensor:
    """mask [B, N], set so often in each row -> where it is set [B, count] int64, ascending."""
    return (~mask).byte().argsort(dim=-1, stable=True)[:, :count]


def by_saliency(features: Tensor, saliency: Tensor | None) -> Tensor:
    """features [B, N, C], saliency [B, N] -> all tokens by falling saliency [B, N] int64, the first on ties first; by
    the norm of their features where the model offers no saliency."""
    if saliency is None:
        saliency = torch.stack([tokens.float().norm(dim=-1) for tokens in features])
    return saliency.argsort(dim=-1, descending=True, stable=True)
