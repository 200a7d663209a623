"""The model's own importance of visual tokens, read beside the attention kernels, which stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SCORES = 1 << 25
"""Attention scores in memory at once, where all of them are needed: 128 MB."""


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
def received_attention(attention: nn.Module) -> Iterator[list[Tensor]]:
    """While open, every pass through an attention without CLS appends what each token is given: [B, N] fp32.

    The mean over heads and queries of softmax(q k^T * scale), for towers in which every token sees every other.
    """
    rows: list[Tensor] = []

    def read(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        batch, tokens = states.shape[:2]
        heads = (batch, tokens, module.num_heads, module.head_dim)
        query, key = (project(states).view(heads).transpose(1, 2) for project in (module.q_proj, module.k_proj))
        some = max(1, SCORES // (batch * tokens * tokens))
        given = [
            ((q.float() * module.scale) @ k.float().mT).softmax(-1).mean(2).sum(1)
            for q, k in zip(query.split(some, 1), key.split(some, 1), strict=True)
        ]
        rows.append(torch.stack(given).sum(0) / module.num_heads)

    hook = attention.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()
