"""The model's own importance of visual tokens, read beside the attention kernels, which stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Measure = Callable[[Any, Tensor], Tensor]
"""An attention and the states that it is given [B, N, C] -> the importance of tokens."""


def cls_attention(attention: nn.Module) -> AbstractContextManager[list[Tensor]]:
    """While open, every pass through a CLIP attention appends its CLS row to the list given: [B, N] fp32.

    Saliency is the sum over heads of softmax(q_cls k^T * scale), the CLS column left out (Sec. 3.3). It needs the
    projections of one query alone, so the tower keeps SDPA or Flash.
    """
    return _beside(attention, _cls_row)


def received_attention(attention: nn.Module) -> AbstractContextManager[list[Tensor]]:
    """While open, every pass through a SigLIP or CLIP attention appends what each token receives: [B, N] fp32.

    Where there is no CLS, saliency is the mean over heads and queries of softmax(q k^T * scale). Heads go one by one:
    the tower keeps its kernels, and one [B, N, N] is held at a time.
    """
    return _beside(attention, _received)


@contextmanager
def _beside(attention: nn.Module, measure: Measure) -> Iterator[list[Tensor]]:
    """While open, `measure` sees every pass through an attention, and what it finds is appended to the list given."""
    found: list[Tensor] = []

    def read(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        found.append(measure(module, args[0] if args else kwargs["hidden_states"]))

    hook = attention.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()


def _cls_row(module: Any, states: Tensor) -> Tensor:
    query, key = _heads(module, module.q_proj(states[:, :1])), _heads(module, module.k_proj(states))
    scores = torch.einsum("bqhd,bkhd->bhk", query.float() * module.scale, key.float())
    return scores.softmax(-1).sum(1)[:, 1:]


def _received(module: Any, states: Tensor) -> Tensor:
    queries, keys = (_heads(module, one(states)).unbind(2) for one in (module.q_proj, module.k_proj))
    total = states.new_zeros(states.shape[:2], dtype=torch.float32)
    for query, key in zip(queries, keys, strict=True):
        total += (query.float() * module.scale @ key.float().mT).softmax(-1).mean(1)
    return total / len(keys)


def _heads(module: Any, projected: Tensor) -> Tensor:
    """[B, N, C] -> [B, N, heads, C / heads]."""
    return projected.unflatten(-1, (module.num_heads, module.head_dim))
