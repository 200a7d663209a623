"""What a tiny checkpoint provides for the tests of all families, and how its weights are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunesid_cli.models.shared.pixel_scale import upload_pixels
from prunesid_cli.types import Pixels, Placement

Sizes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class TinyModel:
    """A tiny checkpoint of the real classes.

    Attributes:
        write: Writes the checkpoint into a folder.
        sizes: Widths and heights of the images that the laws are tested with: every tile grid, tall, wide and tiny.
        clip_inputs: For families that take clips: preprocessed pixels of a clip -> the arguments of the stock model
            besides ids.
        prune_inputs: Recorded inputs of the stock language model, and kept rows -> the inputs without pruned rows. Only
            for models with inputs besides `inputs_embeds`, `position_ids` and deepstack features.
        load_stock: Loads the stock model of a folder, with its `processor`, if transformers has no class for it.
        processor_options: Arguments of the stock processor, for settings of the checkpoint that it does not use itself.
    """

    write: Callable[[Path], None]
    sizes: Sizes = ((336, 336), (500, 200), (90, 400))
    clip_inputs: Callable[[Pixels], Mapping[str, Tensor]] | None = None
    prune_inputs: Callable[[dict[str, Any], Tensor], dict[str, Any]] | None = None
    load_stock: Callable[[Path], Any] | None = None
    processor_options: Mapping[str, Any] = field(default_factory=dict)


ADJUSTMENTS: list[Callable[[Any], None]] = []
"""Functions that change the configuration of each model that is saved."""


@contextmanager
def adjusted(change: Callable[[Any], None]) -> Iterator[None]:
    """Change the configurations of the models that are saved while the context is open."""
    ADJUSTMENTS.append(change)
    try:
        yield
    finally:
        ADJUSTMENTS.remove(change)


def save(model_class: Any, config: Any, folder: Path, seed: int = 0) -> None:
    """Save a model with random weights, large enough that attention and answers depend on the image."""
    for change in ADJUSTMENTS:
        change(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)


def tower_pixels(pixels: Pixels) -> Tensor:
    """The pixels of an item as its tower reads them, in fp32 on the CPU."""
    return upload_pixels([pixels], Placement(torch.device("cpu"), torch.float32, None))
