"""LLaVA-NeXT (1.6): a CLIP or SigLIP tower, a two-layer projector, any causal language model. Cut before the projector.

The tower sees a picture as a base tile, shrunk to its size, and a grid of tiles, cut from the picture enlarged and
padded. The language model reads the base tile, then the rows of patches of the whole grid, padding cut off, each ended
by a newline. One selection runs over each tile, of those of its patches that show the picture. The CLS of each tile is
that tile's summary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration, PreTrainedModel

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.processor import load_processor, placeholder_text
from prunesid_cli.models.shared.token_grid import with_grid_box
from prunesid_cli.models.shared.vision_tower import VisionTower, check_tower, tower_type, trim_tower
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Region, Segment

TOWERS = ("clip_vision_model", "siglip_vision_model")
NEWLINE = -1
"""Stands for a newline where a patch is named by its number."""


class LlavaNext:
    """model_type `llava_next`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        config = load_config(checkpoint)
        check_tower(checkpoint, config, TOWERS)
        if tower_type(config) == "clip_vision_model" and config.vision_feature_select_strategy != "default":
            raise UnsupportedModel(
                f"{checkpoint.name} reads the CLS of every tile, too (strategy 'full'), which leaves no raster to pack",
                hint='its vision_feature_select_strategy must be "default"',
            )

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaNextVision:
        return LlavaNextVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaNextLanguage:
        return LlavaNextLanguage(checkpoint, placement)


@dataclass(frozen=True)
class Seen:
    """What a tower makes of B squares of R rows and columns of patches.

    features [B, R, R, C]; saliency [B, R, R]; summary [B, C], the CLS, None where there is none
    """

    features: Tensor
    saliency: Tensor
    cls: Tensor | None

    def split(self, counts: Sequence[int]) -> list[Seen]:
        """The squares in groups of so many each."""
        cls_tokens = self.cls.split(counts) if self.cls is not None else [None] * len(counts)
        return list(map(Seen, self.features.split(counts), self.saliency.split(counts), cls_tokens))


class Window(NamedTuple):
    """The patches of a square that are read: their first row and column in it, and where the model reads them."""

    square: int
    top: int
    left: int
    region: Region


class LlavaNextVision:
    kind: type[PreTrainedModel] = LlavaNextForConditionalGeneration

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        layers = trim_tower(config)
        self.placement = placement
        self.model = load_vision_model(self.kind, checkpoint, config, placement)
        self.tower = VisionTower(tower_type(config), self.model.model.vision_tower, layers)
        self.processor = load_processor(checkpoint)
        self.side: int = config.vision_config.image_size // config.vision_config.patch_size

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        made = self.processor.image_processor(images=[media.image], return_tensors="pt")
        tensors = {"pixel_values": made["pixel_values"][0], "image_sizes": made["image_sizes"]}
        packed = self.packed(tensors)
        regions = with_grid_box(rasters(packed, self.side), media.size, self.model.config.image_grid_pinpoints)
        layout = Layout(str(placeholder_text(self.processor, False)), (len(packed),), regions)
        return Pixels(tensors, layout)

    def packed(self, tensors: Mapping[str, Tensor]) -> list[int]:
        """Which patch the model reads in each slot of a picture: its number among those of all tiles, or NEWLINE."""
        tiles = len(tensors["pixel_values"])
        rows, _ = self.model.model.pack_image_features(
            [torch.arange(tiles * self.side**2).view(tiles, -1, 1)],
            tensors["image_sizes"],
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            image_newline=torch.tensor([NEWLINE]),
        )
        found: list[int] = rows[0].flatten().tolist()
        return found

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        squares = [next(iter(item.tensors.values())) for item in items]
        seen = self.seen(torch.cat(squares).to(self.placement.device, self.placement.dtype))
        return [self.encoded(item, own) for item, own in zip(items, seen.split(list(map(len, squares))), strict=True)]

    def seen(self, squares: Tensor) -> Seen:
        """What the tower makes of pixels [B, 3, H, W]."""
        states, saliency = self.tower(squares)
        raster, first = (self.side, self.side), int(self.tower.type.has_cls)
        patches, cls = states[:, first:].unflatten(1, raster), states[:, 0] if first else None
        return Seen(patches, saliency.unflatten(1, raster), cls)

    def encoded(self, item: Pixels, seen: Seen) -> Encoded:
        """An item, given what the tower makes of its tiles."""
        read = windows(self.packed(item.tensors), self.side)
        return Encoded(tuple(segment(window, seen) for window in read), item.layout)


def rasters(packed: list[int], side: int) -> tuple[Region, ...]:
    """The base tile, and the grid without its padding, of which nothing is left where a picture is very narrow."""
    base, newlines = Region(0, side, side, side), packed.count(NEWLINE)
    columns = packed.index(NEWLINE) - side**2 if newlines else 0
    return (base, Region(side**2, newlines, columns, columns + 1)) if columns else (base,)


def windows(packed: list[int], side: int) -> tuple[Window, ...]:
    """What is read of each tile; tiles that are padding alone are left out."""
    slots = defaultdict[int, dict[int, int]](dict)
    for slot, patch in enumerate(packed):
        if patch != NEWLINE:
            slots[patch // side**2][patch % side**2] = slot
    return tuple(_window(tile, slots[tile], side) for tile in sorted(slots))


def _window(tile: int, slots: dict[int, int], side: int) -> Window:
    """slots: of each patch that is read; the patches are a rectangle."""
    start, end = min(slots), max(slots)
    (top, left), (bottom, right) = divmod(start, side), divmod(end, side)
    columns = right + 1 - left
    below = slots.get(start + side, slots[start] + columns)
    return Window(tile, top, left, Region(slots[start], bottom + 1 - top, columns, below - slots[start]))


def segment(window: Window, seen: Seen) -> Segment:
    """The patches of a square that are read."""
    square, region = window.square, window.region
    rows = slice(window.top, window.top + region.rows)
    columns = slice(window.left, window.left + region.columns)
    return Segment(
        seen.features[square, rows, columns].flatten(0, 1),
        seen.saliency[square, rows, columns].flatten(),
        seen.cls[square] if seen.cls is not None else None,
        slots=tuple(region.slots),
    )


class LlavaNextLanguage(BaseLanguageHalf):
    kind: type[PreTrainedModel] = LlavaNextForConditionalGeneration

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        trim_tower(config)
        config.vision_config.num_hidden_layers = 0
        super().__init__(load_model_half(self.kind, checkpoint, config, placement), load_processor(checkpoint))
        self.newline_embedding = self.model.model.image_newline

    def project(self, tokens: Tensor) -> Tensor:
        embeds: Tensor = self.model.model.multi_modal_projector(tokens)
        return embeds
