"""The importance of visual tokens in Qwen's towers, which have no CLS: how much attention a token's patches receive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

PART = 1 << 25
"""Attention weights in memory at once: 128 MB, and as much again for the scores that they are made of."""


@contextmanager
def saliency_beside(attention: nn.Module, merger: nn.Module, lengths: Sequence[int]) -> Iterator[None]:
    """While open, what the merger gives has one column more, in fp32: the attention that the patches of each token
    receive in a layer. lengths: patches of each picture of a batch.

    So it goes with the tokens where the tower puts them back in raster order, which Qwen2.5 leaves for its windows.
    """

    def carry(module: Any, args: Any, merged: Tensor) -> Tensor:
        of_tokens = rows.pop().view(len(merged), -1).sum(1)
        return torch.cat([merged.float(), of_tokens[:, None]], -1)

    with packed_attention(attention, lengths) as rows:
        hook = merger.register_forward_hook(carry)
        try:
            yield
        finally:
            hook.remove()


@contextmanager
def packed_attention(attention: nn.Module, lengths: Sequence[int]) -> Iterator[list[Tensor]]:
    """While open, every pass through an attention over pictures in a row appends to the list given what share of all
    attention in its picture each patch receives: [total] fp32. Read from the projections, so the kernels stay."""
    rows: list[Tensor] = []

    def read(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        query, key, _ = module.qkv(states).view(len(states), 3, module.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *kwargs["position_embeddings"])
        pictures = zip(query.split(lengths), key.split(lengths), strict=True)
        rows.append(torch.cat([received(*one, module.scaling) for one in pictures]))

    hook = attention.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def received(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """query, key [N, H, E] -> softmax(q k^T * scale), mean over heads and queries: [N] fp32. Some queries at once."""
    count, heads = query.shape[:2]
    total, key = torch.zeros(count, device=key.device), key.float().permute(1, 2, 0)
    for part in (query.float() * scale).transpose(0, 1).split(max(PART // (count * heads), 1), 1):
        total += (part @ key).softmax(-1).sum((0, 1))
    return total / (count * heads)
