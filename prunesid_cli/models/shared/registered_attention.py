"""Reads the attention of any tower that transformers runs through its registry of attention functions.

For a while an attention module is given a configuration of its own that names a function registered here. This function
notes queries and keys, and leaves the attention itself to the kernel of SDPA. All other modules keep their kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

FUNCTION_NAME = "prunesid_recorded"
MAX_ATTENTION_WEIGHTS = 1 << 24
"""Number of attention weights in memory at a time: 64 MB. All weights of a layer over 4,096 tokens would take 1 GB."""


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function, over B sequences of N tokens.

    Attributes:
        module: The attention module.
        query: [B, heads, N, d].
        key: [B, heads, N, d].
        mask: Which keys a query sees, bool [B, 1, N, N], or additive; None: all.
        scale: Factor of the scores.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    mask: Tensor | None
    scale: float

    def received(self) -> Tensor:
        """Mean attention that each token receives, over heads and queries [B, N], fp32; 0 for padding."""
        if self.mask is None:
            return mean_received_attention(self.query, self.key, self.scale)
        # Sequence by sequence and without padding, so the result does not depend on the other sequences of the batch.
        rows = []
        for query, key, mask in zip(self.query, self.key, self._visible(), strict=True):
            valid = mask.any(0)
            index = valid.nonzero().flatten()
            seen = mask[index][:, index]
            part = mean_received_attention(
                query[None, :, index], key[None, :, index], self.scale, None if seen.all() else seen
            )
            rows.append(torch.zeros(len(valid), device=key.device).index_copy_(0, index, part[0]))
        return torch.stack(rows)

    def of_first(self) -> Tensor:
        """Attention of the first token to each token, summed over heads [B, N], fp32 (PruneSID, Sec. 3.3)."""
        # Products are summed token by token: the kernel of a batched product, and with it the rounding, may depend on
        # the size of the batch.
        scores = (self.query[:, :, :1].float() * self.scale * self.key.float()).sum(-1)
        if self.mask is not None:
            scores = scores.masked_fill(~self._visible()[:, None, 0], -torch.inf)
        return scores.softmax(-1).sum(1)

    def _visible(self) -> Tensor:
        """The mask as bool [B, N, N]."""
        assert self.mask is not None
        mask = self.mask if self.mask.dtype == torch.bool else self.mask > torch.finfo(self.mask.dtype).min / 2
        return mask[:, 0].expand(len(self.key), self.query.shape[2], self.key.shape[2])


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


_RECORDS: WeakKeyDictionary[nn.Module, list[AttentionCall]] = WeakKeyDictionary()
"""Attention module -> the calls that are being recorded of it."""


def _record_and_attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: [B, heads, N, d] each -> [B, N, heads, d]."""
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    shared_heads = query.shape[1] // key.shape[1]
    keys = key.repeat_interleave(shared_heads, 1) if shared_heads > 1 else key
    if module in _RECORDS:
        _RECORDS[module].append(AttentionCall(module, query, keys, attention_mask, scale))
    attended: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
    return attended, None


AttentionInterface.register(FUNCTION_NAME, _record_and_attend)
AttentionMaskInterface.register(FUNCTION_NAME, sdpa_mask)


@contextmanager
def record_attention(modules: Sequence[Any]) -> Iterator[list[AttentionCall]]:
    """Record the calls of attention modules while the context is open.

    Args:
        modules: Modules with a `config`. Those that call no function of the registry are harmless.

    Yields:
        The calls, in their order.
    """
    calls: list[AttentionCall] = []
    configs = [module.config for module in modules]
    try:
        for module in modules:
            _RECORDS[module] = calls
            module.config = copy(module.config)
            module.config._attn_implementation_internal = FUNCTION_NAME
        yield calls
    finally:
        for module, config in zip(modules, configs, strict=True):
            del _RECORDS[module]
            module.config = config
