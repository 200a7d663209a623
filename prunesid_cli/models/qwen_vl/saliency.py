"""Saliency of visual tokens in Qwen's towers, which have no CLS: the attention that a token's patches receive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

MAX_ATTENTION_WEIGHTS = 1 << 25
"""Attention weights in memory at once: 128 MB in fp32, and as much again for the scores that they are made from."""


@contextmanager
def append_saliency(attention: nn.Module, merger: nn.Module, lengths: Sequence[int]) -> Iterator[None]:
    """While open, the merger's output has one more column, in fp32: the saliency of each token.

    The column goes through the tower with the tokens, so it is in raster order where they are: Qwen2.5-VL permutes
    patches into windows and puts merged tokens back. Queries and keys are projected again beside the attention, so its
    kernel stays as it is.

    Args:
        attention: The attention that is read, over patches of several images in a row.
        merger: The module that makes one token of each cell of patches.
        lengths: Number of patches of each image, or of each temporal patch of a clip.
    """
    recorded: list[Tensor] = []

    def record(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        query, key, _ = module.qkv(states).view(len(states), 3, module.num_heads, -1).unbind(1)
        query, key = apply_rotary_pos_emb_vision(query, key, *kwargs["position_embeddings"])
        images = zip(query.split(lengths), key.split(lengths), strict=True)
        recorded.append(torch.cat([received_attention(*image, module.scaling) for image in images]))

    def append(module: Any, args: Any, merged: Tensor) -> Tensor:
        saliency = recorded.pop().view(len(merged), -1).sum(1)
        return torch.cat([merged.float(), saliency[:, None]], -1)

    hooks = (
        attention.register_forward_pre_hook(record, with_kwargs=True),
        merger.register_forward_hook(append),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def received_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention that each patch of one image receives, a few queries at a time.

    Args:
        query: [N, H, E], H heads.
        key: [N, H, E].
        scale: Factor of the scores.

    Returns:
        Mean over heads and queries of softmax(q k^T * scale): [N], fp32, sum 1.
    """
    count, heads = query.shape[:2]
    total, key = torch.zeros(count, device=key.device), key.float().permute(1, 2, 0)
    chunk = max(MAX_ATTENTION_WEIGHTS // (count * heads), 1)
    for queries in (query.float() * scale).transpose(0, 1).split(chunk, 1):
        total += (queries @ key).softmax(-1).sum((0, 1))
    return total / (count * heads)
