"""Saliency of visual tokens from a tower's own attention.

The attention is computed a second time, from the inputs of an attention module, so the tower's own kernels (SDPA or
Flash Attention) and its outputs do not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

MAX_ATTENTION_WEIGHTS = 1 << 24
"""Number of attention weights in memory at a time: 64 MB. All weights of a layer over 4,096 tokens would take 1 GB."""

QueryKeyProjection = Callable[[Any, Tensor, dict[str, Any]], tuple[Tensor, Tensor, float]]
"""An attention module, its input [B, N, C] and its other arguments -> queries and keys [B, heads, N, d], scale."""


@contextmanager
def record_cls_attention(attention: nn.Module) -> Iterator[list[Tensor]]:
    """Record the attention of CLS to each patch while the context is open (PruneSID, Sec. 3.3).

    The saliency is the sum over heads of softmax(q_cls k^T * scale), without the CLS column. It needs the projection of
    one query only, so the tower keeps its fast kernels.

    Args:
        attention: An attention module of CLIP's kind, whose input has CLS as its first token.

    Yields:
        A list to which every pass through the module appends a tensor [B, N] in fp32, N patches without CLS.
    """
    rows: list[Tensor] = []

    def record(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        query, key = project_heads(module, "q", states[:, :1]), project_heads(module, "k", states)
        # Products are summed token by token: the kernel of a batched product, and with it the rounding, may depend on
        # the size of the batch.
        scores = (query.float() * module.scale * key.float()).sum(-1)
        rows.append(scores.softmax(-1).sum(1)[:, 1:])

    with attention.register_forward_pre_hook(record, with_kwargs=True):
        yield rows


def project_heads(module: Any, projection: str, states: Tensor) -> Tensor:
    """Project states to the queries or keys of each head, and normalise them if the module does.

    Args:
        module: An attention module of CLIP's kind.
        projection: "q" for queries, "k" for keys.
        states: Input of the module [B, N, C].

    Returns:
        Queries or keys [B, heads, N, d].
    """
    projected = getattr(module, f"{projection}_proj")(states)
    norm = getattr(module, f"{projection}_norm", None)
    projected = projected if norm is None else norm(projected)
    return projected.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)


def project_query_key(module: Any, states: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, float]:
    """`QueryKeyProjection` of CLIP, SigLIP and similar towers."""
    return project_heads(module, "q", states), project_heads(module, "k", states), module.scale


@contextmanager
def record_received_attention(
    attention: nn.Module, project: QueryKeyProjection = project_query_key
) -> Iterator[list[Tensor]]:
    """Record how much attention each token receives while the context is open: the saliency in a tower without CLS.

    Args:
        attention: An attention module.
        project: Computes the module's queries and keys.

    Yields:
        A list to which every pass through the module appends a tensor [B, N] in fp32, whose rows sum to 1.
    """
    rows: list[Tensor] = []

    def record(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        rows.append(mean_received_attention(*project(module, states, kwargs)))

    with attention.register_forward_pre_hook(record, with_kwargs=True):
        yield rows


def mean_received_attention(query: Tensor, key: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Average the attention weights softmax(q k^T * scale) over heads and queries.

    Heads are processed in chunks, and so are the queries if the weights of a single head are too many.

    Args:
        query: Queries [B, heads, N, d].
        key: Keys [B, heads, N, d].
        scale: Factor of the products.
        mask: Which keys each query sees, bool [N, N]; None: all.

    Returns:
        The column means of the attention weights [B, N], fp32.
    """
    batch, _, count, _ = query.shape
    heads_per_chunk = max(MAX_ATTENTION_WEIGHTS // count**2, 1)
    queries_per_chunk = max(MAX_ATTENTION_WEIGHTS // count, 1)
    query_chunks = (query.float() * scale).flatten(0, 1).split(heads_per_chunk)
    key_chunks = key.float().flatten(0, 1).split(heads_per_chunk)
    sums = []
    for queries, keys in zip(query_chunks, key_chunks, strict=True):
        partial_sums = []
        for start in range(0, count, queries_per_chunk):
            scores = queries[:, start : start + queries_per_chunk] @ keys.mT
            if mask is not None:
                scores = scores.masked_fill(~mask[start : start + queries_per_chunk], -torch.inf)
            partial_sums.append(scores.softmax(-1).sum(1))
        sums.append(torch.stack(partial_sums).sum(0))
    return torch.cat(sums).view(batch, -1, count).mean(1) / count
