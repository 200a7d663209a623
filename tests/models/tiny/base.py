"""What a tiny checkpoint says of itself to the laws, and how its weights are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunesid_cli.types import Pixels

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Tiny:
    """write     makes the checkpoint in a folder
    sizes        width and height of the pictures that the laws are tried on: every grid of tiles, tall, wide and tiny
    clip         for families that take clips: our pixels of one -> what the stock model's forward takes besides ids
    without      of captured inputs of the stock language model, those that drop with the tokens, where it is not
                 `inputs_embeds`, `position_ids` and deep-stacked features alone
    stock        the whole model of a folder, with its `processor`, where transformers has no class for it
    options      what the stock processor must be told in each call, where it forgets a setting of the checkpoint
    """

    write: Callable[[Path], None]
    sizes: Sizes = ((336, 336), (500, 200), (90, 400))
    clip: Callable[[Pixels], Mapping[str, Tensor]] | None = None
    without: Callable[[dict[str, Any], Tensor], dict[str, Any]] | None = None
    stock: Callable[[Path], Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def save(kind: Any, config: object, folder: Path, seed: int = 0) -> None:
    """Random weights, wide enough that attention and answers depend on the picture."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
