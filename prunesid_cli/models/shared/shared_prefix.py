"""What prompts about one item begin with alike goes through the language model once (shared prefill).

Beside each other such prompts are the same left-padded batch as ever: only its first columns, as many as are known of
every row, are laid out from what was computed before. So masks, positions and sliding windows are those of the batch
without sharing, and a row that is shorter than others has the end of its beginning computed again, in its place.
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

CACHE_ARGUMENT = (
    "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"
)
"""What transformers calls keys and values of tokens that were read before; the second up to some release after 5.17."""


@dataclass(frozen=True)
class PrefixCache:
    """The first tokens of prompts as each layer knows them: keys and values [heads, length, width]."""

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[1]


def caches_every_token(config: Any) -> bool:
    """Whether every layer of a language model keeps keys and values of each token, and no state beside them."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=config).layers)


def prompt_prefix(prompt: Prompt, length: int) -> Prompt:
    """The first tokens of a prompt."""
    visual = prompt.visual[:length]
    return replace(
        prompt,
        embeds=prompt.embeds[:length],
        visual=visual,
        positions=None if prompt.positions is None else prompt.positions[:, :length],
        deepstack=None if prompt.deepstack is None else prompt.deepstack[:, : int(visual.sum())],
    )


def empty() -> DynamicCache:
    """Of no configuration, so that layers of a sliding window keep what is before it, too: another row may need it."""
    return DynamicCache()


def split_prefix_caches(cache: DynamicCache, lengths: Sequence[int]) -> list[PrefixCache]:
    """Of a left-padded batch that was read, row by row without its padding."""
    both = [(layer.keys, layer.values) for layer in cache.layers]
    return [
        PrefixCache(tuple((keys[row, :, -length:], values[row, :, -length:]) for keys, values in both))
        for row, length in enumerate(lengths)
    ]


def batch_prefix_caches(prefix_caches: Sequence[PrefixCache], lengths: Sequence[int]) -> DynamicCache:
    """The first columns of a left-padded batch of prompts of these lengths, each of which is longer than what it begins
    with: all columns but as many as the longest rest has."""
    columns = max(lengths) - max(length - one.length for one, length in zip(prefix_caches, lengths, strict=True))
    known = [max(columns - (max(lengths) - length), 0) for length in lengths]
    cache = empty()
    for number in range(len(prefix_caches[0].layers)):
        rows = [one.layers[number] for one in prefix_caches]
        keys, values = (
            torch.stack(
                [pad(row[:, :some], (0, 0, columns - some, 0)) for row, some in zip(tensors, known, strict=True)]
            )
            for tensors in zip(*rows, strict=True)
        )
        cache.update(keys, values, number)
    return cache
