"""The model's own importance of visual tokens, read beside the attention kernels, which stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

PART = 1 << 24
"""Scores that are held at once, a few bytes each."""


@contextmanager
def cls_attention(attention: nn.Module) -> Iterator[list[Tensor]]:
    """While open, every pass through a CLIP attention appends its CLS row to the list given: [B, N] fp32.

    Saliency is the sum over heads of softmax(q_cls k^T * scale), the CLS column left out (Sec. 3.3). It needs the
    projections of one query alone, so the tower keeps SDPA or Flash.
    """
    rows: list[Tensor] = []

    def read(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        heads = (*states.shape[:2], module.num_heads, module.head_dim)
        query = module.q_proj(states[:, :1]).view(heads[0], 1, *heads[2:])
        key = module.k_proj(states).view(heads)
        scores = torch.einsum("bqhd,bkhd->bhk", query.float() * module.scale, key.float())
        rows.append(scores.softmax(-1).sum(1)[:, 1:])

    hook = attention.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


@contextmanager
def packed_attention(attention: nn.Module, lengths: Sequence[int]) -> Iterator[list[Tensor]]:
    """While open, every pass through an attention over packed pictures, as Qwen's towers have it, appends to the list
    given what share of all attention in its picture each token receives: [total], fp32. lengths: of the pictures."""
    rows: list[Tensor] = []

    def read(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        query, key, _ = module.qkv(states).view(len(states), 3, module.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *kwargs["position_embeddings"])
        pictures = zip((query * module.scaling).split(lengths), key.split(lengths), strict=True)
        rows.append(torch.cat([received(*one) for one in pictures]))

    hook = attention.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def received(query: Tensor, key: Tensor) -> Tensor:
    """query (scaled), key [N, H, E] -> attention that each token receives, mean over heads and queries: [N] fp32."""
    count, heads = query.shape[:2]
    total, key = torch.zeros(count, device=key.device), key.float().permute(1, 2, 0)
    for part in query.float().transpose(0, 1).split(max(PART // (count * heads), 1), 1):
        total += (part @ key).softmax(-1).sum((0, 1))
    return total / (count * heads)
