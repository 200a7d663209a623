"""The model's own importance of visual tokens, read beside the attention kernels, which stay as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def cls_attention(attention: nn.Module) -> Iterator[list[Tensor]]:
    """While open, every pass through a CLIP attention appends its CLS row to the list given: [B, N] fp32.

    Saliency is the sum over heads of softmax(q_cls k^T * scale), the CLS column left out (Sec. 3.3). It needs the
    projections of one query alone, so the tower keeps SDPA or Flash. Products are summed token by token, since the
    kernel of a batched product, and with it the rounding, may go by the size of the batch.
    """
    rows: list[Tensor] = []

    def read(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        heads = (*states.shape[:2], module.num_heads, module.head_dim)
        query = module.q_proj(states[:, :1]).view(heads[0], 1, *heads[2:])
        key = module.k_proj(states).view(heads)
        scores = (query.float() * module.scale * key.float()).sum(-1)
        rows.append(scores.softmax(1).sum(-1)[:, 1:])

    hook = attention.register_forward_pre_hook(read, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()
