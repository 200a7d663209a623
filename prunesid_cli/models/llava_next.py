"""LLaVA-NeXT (1.6).

Checkpoints: llava-hf/llava-v1.6-* and others of model_type `llava_next`; any causal language model.
Vision tower: CLIP or SigLIP; the features of vision_feature_layer. It sees a base tile, the whole image resized to one
    tile, and a grid of tiles, cut from the image enlarged and padded.
Cut: before the two-layer projector, where a token is as wide as the tower (times the number of feature layers).
Layout: the base tile, then the rows of patches of the whole grid, without padding, a newline after each row. A segment
    is a tile, with those of its patches that show the image.
Saliency: attention of CLS in the last layer that is read, tile by tile; without CLS, the attention received. The CLS of
    a tile is the CLS token of its segment.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration, PreTrainedModel

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import split_scale, upload_pixels
from prunesid_cli.models.shared.processor import load_processor, placeholder_text
from prunesid_cli.models.shared.requirements import check_requirements
from prunesid_cli.models.shared.token_grid import with_grid_box
from prunesid_cli.models.shared.vision_tower import VisionTower, check_tower, tower_type, trim_tower
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Region, Segment

TOWERS = ("clip_vision_model", "siglip_vision_model")
NEWLINE = -1
"""Patch number of a newline."""


class LlavaNext:
    """Family of model_type `llava_next`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse other towers, features that they do not have, and tiles that are read with their CLS."""
        config = load_config(checkpoint)
        check_tower(checkpoint, config, TOWERS)
        reads_cls = tower_type(config) == "clip_vision_model" and config.vision_feature_select_strategy != "default"
        problem = "reads the CLS of every tile, too (strategy 'full'), which leaves no raster to pack"
        check_requirements(checkpoint, "LLaVA-NeXT", ((not reads_cls, problem, "the strategy 'default'"),))

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaNextVision:
        return LlavaNextVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaNextLanguage:
        return LlavaNextLanguage(checkpoint, placement)


@dataclass(frozen=True)
class TowerOutput:
    """What the tower gives for T tiles or frames of R x R patches.

    Attributes:
        features: [T, R, R, C].
        saliency: [T, R, R].
        cls: CLS tokens [T, C]; None if the tower has none.
    """

    features: Tensor
    saliency: Tensor
    cls: Tensor | None


@dataclass(frozen=True)
class TileWindow:
    """The patches of a tile that the language model reads, a rectangle.

    Attributes:
        tile: Number of the tile; 0 is the base tile.
        top: First row of patches in the tile.
        left: First column of patches in the tile.
        region: Slots where they are read.
    """

    tile: int
    top: int
    left: int
    region: Region


class LlavaNextVision:
    """Vision half: tiles of an image -> features of the tower, C wide."""

    model_class: type[PreTrainedModel] = LlavaNextForConditionalGeneration

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        feature_layers = trim_tower(config)
        self.placement = placement
        self.model = load_vision_model(self.model_class, checkpoint, config, placement)
        self.tower = VisionTower(tower_type(config), self.model.model.vision_tower, feature_layers)
        self.processor = load_processor(checkpoint)
        self.scale, self.options = split_scale(self.processor.image_processor)
        self.side: int = config.vision_config.image_size // config.vision_config.patch_size

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> base tile and tiles [T, 3, H, W], and the image's size [1, 2]."""
        processed = self.processor.image_processor(images=[media.image], return_tensors="pt", **self.options)
        tensors = {"pixel_values": processed["pixel_values"][0], "image_sizes": processed["image_sizes"]}
        packed = self.pack_patch_numbers(tensors)
        canvases = self.model.config.image_grid_pinpoints
        regions = with_grid_box(packed_regions(packed, self.side), media.size, canvases)
        layout = Layout(str(placeholder_text(self.processor, False)), (len(packed),), regions)
        return Pixels(tensors, layout, self.scale)

    def pack_patch_numbers(self, tensors: Mapping[str, Tensor]) -> list[int]:
        """Run the stock model's packing on the numbers of the patches.

        Args:
            tensors: The tensors of an image, as `preprocess` makes them.

        Returns:
            For each slot of the image, the number of its patch among those of all tiles, or NEWLINE.
        """
        num_tiles = len(tensors["pixel_values"])
        packed, _ = self.model.model.pack_image_features(
            [torch.arange(num_tiles * self.side**2).view(num_tiles, -1, 1)],
            tensors["image_sizes"],
            vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            image_newline=torch.tensor([NEWLINE]),
        )
        numbers: list[int] = packed[0].flatten().tolist()
        return numbers

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images, and for LLaVA-NeXT-Video clips -> a segment for each tile or frame."""
        states, saliency = self.tower(upload_pixels(items, self.placement))
        grid, num_cls = (self.side, self.side), int(self.tower.type.has_cls)
        features, saliency = states[:, num_cls:].unflatten(1, grid), saliency.unflatten(1, grid)
        encoded, start = [], 0
        for item in items:
            tiles = slice(start, start + len(next(iter(item.tensors.values()))))
            output = TowerOutput(features[tiles], saliency[tiles], states[tiles, 0] if num_cls else None)
            encoded.append(Encoded(self.make_segments(item, output), item.layout))
            start = tiles.stop
        return encoded

    def make_segments(self, item: Pixels, output: TowerOutput) -> tuple[Segment, ...]:
        """The segments of an item, given what the tower makes of its tiles or frames."""
        segments = []
        for window in tile_windows(self.pack_patch_numbers(item.tensors), self.side):
            rows = slice(window.top, window.top + window.region.rows)
            columns = slice(window.left, window.left + window.region.columns)
            segment = Segment(
                features=output.features[window.tile, rows, columns].flatten(0, 1),
                saliency=output.saliency[window.tile, rows, columns].flatten(),
                cls=None if output.cls is None else output.cls[window.tile],
                slots=tuple(window.region.slots),
            )
            segments.append(segment)
        return tuple(segments)


def packed_regions(packed: Sequence[int], side: int) -> tuple[Region, ...]:
    """Find the regions of an image.

    Args:
        packed: Patch number of each slot, from `LlavaNextVision.pack_patch_numbers`.
        side: Patches along each side of a tile.

    Returns:
        The base tile, and the grid without its padding. Of a very narrow image no patch of the grid is left.
    """
    base, num_newlines = Region(0, side, side, side), packed.count(NEWLINE)
    columns = packed.index(NEWLINE) - side**2 if num_newlines else 0
    return (base, Region(side**2, num_newlines, columns, columns + 1)) if columns else (base,)


def tile_windows(packed: Sequence[int], side: int) -> list[TileWindow]:
    """Find what is read of each tile. Tiles that show padding alone are left out. Arguments as in `packed_regions`."""
    slots_by_tile = defaultdict[int, dict[int, int]](dict)
    for slot, patch in enumerate(packed):
        if patch != NEWLINE:
            tile, place = divmod(patch, side**2)
            slots_by_tile[tile][place] = slot
    windows = []
    for tile, slots in sorted(slots_by_tile.items()):
        first, last = min(slots), max(slots)
        (top, left), (bottom, right) = divmod(first, side), divmod(last, side)
        rows, columns = bottom + 1 - top, right + 1 - left
        stride = slots.get(first + side, slots[first] + columns) - slots[first]
        windows.append(TileWindow(tile, top, left, Region(slots[first], rows, columns, stride)))
    return windows


class LlavaNextLanguage(BaseLanguageHalf):
    """Language half: projector and language model."""

    model_class: type[PreTrainedModel] = LlavaNextForConditionalGeneration

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        trim_tower(config)
        config.vision_config.num_hidden_layers = 0
        super().__init__(load_model_half(self.model_class, checkpoint, config, placement), load_processor(checkpoint))
        self.newline_embedding = self.model.model.image_newline

    def project(self, tokens: Tensor) -> Tensor:
        """[T, C] -> [T, D]."""
        embeds: Tensor = self.model.model.multi_modal_projector(tokens)
        return embeds
