"""The model's own importance of visual tokens, read beside the attention kernels, which stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

AT_ONCE = 1 << 24
"""Attention weights that are in memory at a time: 64 MB. All of a layer's over 4,096 tokens would take 1 GB."""

QueryKeyProjection = Callable[[Any, Tensor, dict[str, Any]], tuple[Tensor, Tensor, float]]
"""An attention module, what it reads [B, N, C] and its other arguments -> queries and keys [B, heads, N, d], scale."""


@contextmanager
def record_cls_attention(attention: nn.Module) -> Iterator[list[Tensor]]:
    """While open, every pass through a CLIP attention appends its CLS row to the list given: [B, N] fp32.

    Saliency is the sum over heads of softmax(q_cls k^T * scale), the CLS column left out (Sec. 3.3). It needs the
    projections of one query alone, so the tower keeps SDPA or Flash. Products are summed token by token, since the
    kernel of a batched product, and with it the rounding, may go by the size of the batch.
    """

    def of_cls(module: Any, states: Tensor, given: dict[str, Any]) -> Tensor:
        query, key = project_heads(module, "q", states[:, :1]), project_heads(module, "k", states)
        scores = (query.float() * module.scale * key.float()).sum(-1)
        return scores.softmax(-1).sum(1)[:, 1:]

    with _beside(attention, of_cls) as rows:
        yield rows


def project_query_key(module: Any, states: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor, float]:
    """`Projected` for CLIP and SigLIP, and for others like them that normalise queries and keys."""
    return project_heads(module, "q", states), project_heads(module, "k", states), module.scale


def project_heads(module: Any, which: str, states: Tensor) -> Tensor:
    """Queries ("q") or keys ("k") of each head: [B, N, C] -> [B, heads, N, d]."""
    made = getattr(module, f"{which}_proj")(states)
    norm = getattr(module, f"{which}_norm", None)
    made = made if norm is None else norm(made)
    return made.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)


@contextmanager
def record_received_attention(
    attention: nn.Module, projected: QueryKeyProjection = project_query_key
) -> Iterator[list[Tensor]]:
    """While open, every pass through an attention appends how much of it each token receives: [B, N] fp32, sum 1.

    The importance in a tower without CLS: the column means of all heads' attention weights.
    """

    def of_all(module: Any, states: Tensor, given: dict[str, Any]) -> Tensor:
        return mean_received_attention(*projected(module, states, given))

    with _beside(attention, of_all) as rows:
        yield rows


def mean_received_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Queries and keys [B, heads, N, d] -> mean over heads and queries of softmax(q k^T * scale): [B, N] fp32.

    In chunks of heads, and of queries where one head's weights are too many.
    """
    batch, _, count, _ = query.shape
    heads, rows = max(AT_ONCE // count**2, 1), max(AT_ONCE // count, 1)
    parts = [
        torch.stack([(one @ keys.mT).softmax(-1).sum(1) for one in queries.split(rows, 1)]).sum(0)
        for queries, keys in zip(
            (query.float() * scale).flatten(0, 1).split(heads), key.float().flatten(0, 1).split(heads), strict=True
        )
    ]
    return torch.cat(parts).view(batch, -1, count).mean(1) / count


@contextmanager
def _beside(module: nn.Module, read: Callable[[Any, Tensor, dict[str, Any]], Tensor]) -> Iterator[list[Tensor]]:
    """While open, what `read` makes of each input of a module is appended to the list given."""
    rows: list[Tensor] = []

    def hook(module: Any, args: tuple[Tensor, ...], given: dict[str, Any]) -> None:
        rows.append(read(module, args[0] if args else given["hidden_states"], given))

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()
