"""Shared prefill: the prefix that several prompts about one item have in common runs through the model once.

The prompts still form the same left-padded batch. Only its first columns, as many as are cached of every row, are
filled from the cache. So masks, positions and sliding windows are those of the batch without sharing. In a row that is
shorter than others, the end of the prefix is computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from prunesid_cli.types import Prompt

_ARGUMENTS = signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE_ARGUMENT = "cache" if "cache" in _ARGUMENTS else "past_key_values"
"""The argument of `generate` for the keys and values of earlier tokens; the second name up to a release after 5.18."""


@dataclass(frozen=True)
class PrefixCache:
    """Keys and values of the first tokens of a prompt.

    Attributes:
        layers: Keys and values [heads, length, width] of each layer.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.layers[0][0].shape[1]


def caches_every_token(config: Any) -> bool:
    """Whether every layer of a language model caches keys and values of each token, and no other state."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)


def prompt_prefix(prompt: Prompt, length: int) -> Prompt:
    """The first `length` tokens of a prompt."""
    visual = prompt.visual[:length]
    return replace(
        prompt,
        ids=prompt.ids[:length],
        visual=visual,
        features=prompt.features[: int(visual.sum())],
        positions=None if prompt.positions is None else prompt.positions[:, :length],
    )


def split_prefix_caches(cache: DynamicCache, lengths: Sequence[int]) -> list[PrefixCache]:
    """Split the cache of a left-padded batch into one cache for each row, without padding.

    Args:
        cache: Keys and values of the batch.
        lengths: Number of tokens of each row.
    """
    layers = [(layer.keys, layer.values) for layer in cache.layers]
    return [
        PrefixCache(tuple((keys[row, :, -length:], values[row, :, -length:]) for keys, values in layers))
        for row, length in enumerate(lengths)
    ]


def batch_prefix_caches(prefix_caches: Sequence[PrefixCache], lengths: Sequence[int]) -> DynamicCache:
    """Build the cache of the first columns of a left-padded batch of prompts.

    Args:
        prefix_caches: The cached prefix of each prompt.
        lengths: Number of tokens of each prompt, more than its prefix has.

    Returns:
        Keys and values of all columns but the last n, where n is the largest number of tokens that a prompt has after
        its prefix.
    """
    remainders = [length - prefix.length for prefix, length in zip(prefix_caches, lengths, strict=True)]
    num_columns = max(lengths) - max(remainders)
    num_cached = [max(num_columns - (max(lengths) - length), 0) for length in lengths]
    # Without a configuration, layers with a sliding window keep all tokens, which another row may need.
    batch = DynamicCache()
    for layer in range(len(prefix_caches[0].layers)):
        keys, values = [], []
        for prefix, count in zip(prefix_caches, num_cached, strict=True):
            row_keys, row_values = prefix.layers[layer]
            padding = (0, 0, num_columns - count, 0)
            keys.append(pad(row_keys[:, :count], padding))
            values.append(pad(row_values[:, :count], padding))
        batch.update(torch.stack(keys), torch.stack(values), layer)
    return batch
