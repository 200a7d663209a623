"""The model's own importance of visual tokens, read beside the attention kernels, which stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ROOM = 1 << 26
"""How many scores are held at a time: 256 MB of them."""


def cls_attention(attention: nn.Module) -> AbstractContextManager[list[Tensor]]:
    """While open, every pass through a CLIP-like attention appends its CLS row to the list given: [B, N] fp32.

    Saliency is the sum over heads of softmax(q_cls k^T * scale), the CLS column left out (Sec. 3.3). It needs the
    projections of one query alone, so the tower keeps SDPA or Flash.
    """

    def row(module: Any, states: Tensor) -> Tensor:
        query, key = _heads(module, "q", states[:, :1]), _heads(module, "k", states)
        scores = torch.einsum("bqhd,bkhd->bhk", query.float() * module.scale, key.float())
        return scores.softmax(-1).sum(1)[:, 1:]

    return _beside(attention, row)


def received_attention(attention: nn.Module) -> AbstractContextManager[list[Tensor]]:
    """While open, every pass through a SigLIP-like attention without padding appends what each token is given by all
    of them, on average over heads: [B, N] fp32, 1 / N for a token like any other."""

    def means(module: Any, states: Tensor) -> Tensor:
        # Heads of all pictures in one row: [B * H, N, d].
        query, key = (_heads(module, one, states).float().transpose(1, 2).flatten(0, 1) for one in "qk")
        step = max(1, ROOM // states.shape[1] ** 2)
        parts = zip(query.split(step), key.split(step), strict=True)
        given = torch.cat([(q * module.scale @ k.mT).softmax(-1).mean(1) for q, k in parts])
        return given.unflatten(0, (len(states), -1)).mean(1)

    return _beside(attention, means)


def _heads(module: Any, which: str, states: Tensor) -> Tensor:
    """Queries or keys of each head, normalised where the module does: [B, N, C] -> [B, N, H, d]."""
    made = getattr(module, f"{which}_proj")(states)
    norm = getattr(module, f"{which}_norm", None)
    return (made if norm is None else norm(made)).unflatten(-1, (module.num_heads, module.head_dim))


@contextmanager
def _beside(attention: nn.Module, read: Callable[[Any, Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """While open, what `read` makes of the states that come into a module is appended to the list given."""
    found: list[Tensor] = []

    def note(module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        found.append(read(module, args[0] if args else kwargs["hidden_states"]))

    hook = attention.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        hook.remove()
