"""LLaVA-1.5: a CLIP, SigLIP or Pixtral tower, two-layer projector, any causal language model. Cut before the projector.

Visual tokens are the hidden states of the tower that the projector reads (layer -2), 576 for CLIP-L/336; saliency is
the attention of CLS in that same layer, or where there is no CLS the attention received. Layers of the tower above it
are neither loaded nor run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.processor import (
    load_processor,
    load_processor_settings,
    placeholder_ids,
    placeholder_text,
    preprocess_frames,
    process_image,
    resized_short_side,
    visible_box,
)
from prunesid_cli.models.shared.token_grid import window_slices
from prunesid_cli.models.shared.vision_tower import VisionTower, check_tower, tower_type, trim_tower
from prunesid_cli.types import CLS_NOT_READ, Encoded, Layout, Pixels, Placement, Region, Segment

WINDOW = 32
"""Pixtral's rasters, of up to 64 x 64 tokens, are cut into segments of at most this many rows and columns."""

BREAKS = {"break": "[IMG_BREAK]", "end": "[IMG_END]"}
"""What Pixtral's processor writes between rows of patches and after the last, unless its settings say otherwise."""


class Llava:
    """model_type `llava`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        check_tower(checkpoint, load_config(checkpoint), tuple(VISION))

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaVision:
        config = load_config(checkpoint)
        return VISION[tower_type(config)](checkpoint, config, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaLanguage:
        return LlavaLanguage(checkpoint, placement)


class LlavaVision:
    """Pictures of one size."""

    def __init__(self, checkpoint: Checkpoint, config: Any, placement: Placement) -> None:
        self.config, self.placement = config, placement
        kind, layers = tower_type(config), trim_tower(config)
        self.model = load_vision_model(LlavaForConditionalGeneration, checkpoint, config, placement)
        self.tower = VisionTower(kind, self.model.model.vision_tower, layers)
        self.processor = load_processor(checkpoint)
        self.prepare(checkpoint)

    def prepare(self, checkpoint: Checkpoint) -> None:
        """The layout is the same for every picture, but for what of it is shown."""
        reads_cls = self.tower.type.has_cls and self.config.vision_feature_select_strategy == "full"
        self.cls_slot = 0 if reads_cls else CLS_NOT_READ
        self.fixed_short_side = resized_short_side(self.processor.image_processor)
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        read = process_image(self.processor, placeholder_ids(self.config), Image.new("RGB", (side, side)))
        self.layout = Layout(read.text, read.runs, (Region(self.cls_slot + 1, side, side, side),))

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        region = replace(self.layout.regions[0], box=visible_box(self.processor.image_processor, media.size))
        layout = replace(self.layout, regions=(region,))
        return Pixels({"pixel_values": preprocess_frames(self.processor, media.frames)}, layout)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        batch = torch.cat([item.tensors["pixel_values"] for item in items])
        states, saliency = self.tower(batch.to(self.placement.device, self.placement.dtype))
        made = zip(states, saliency, items, strict=True)
        return [Encoded((self.segment(one, importance),), item.layout) for one, importance, item in made]

    def segment(self, states: Tensor, saliency: Tensor) -> Segment:
        if not self.tower.type.has_cls:
            return Segment(states, saliency)
        slots = tuple(self.layout.regions[0].slots) if self.cls_slot != CLS_NOT_READ else None
        return Segment(states[1:], saliency, states[0], slots=slots, cls_slot=self.cls_slot)


class PixtralVision(LlavaVision):
    """Pictures of every size, in whole patches: a run for each row of them, with text between.

    That text is written here, because transformers' processor for Pixtral needs torchvision.
    """

    def prepare(self, checkpoint: Checkpoint) -> None:
        said = load_processor_settings(checkpoint)
        self.break_text, self.end_text = (said.get(f"image_{name}_token", word) for name, word in BREAKS.items())

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        pixels = preprocess_frames(self.processor, media.frames, patch_size=self.config.vision_config.patch_size)
        rows, columns = (length // self.config.vision_config.patch_size for length in pixels.shape[-2:])
        word = str(placeholder_text(self.processor, False))
        text = self.break_text.join([word] * rows) + self.end_text
        return Pixels({"pixel_values": pixels}, Layout(text, (columns,) * rows, (Region(0, rows, columns, columns),)))

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """One by one: the tower would lay a batch end to end and attend over all of it."""
        return [self.encoded(item) for item in items]

    def encoded(self, item: Pixels) -> Encoded:
        pixels = item.tensors["pixel_values"].to(self.placement.device, self.placement.dtype)
        (states,), (saliency,) = self.tower(pixels)
        (region,) = item.layout.regions
        raster = torch.arange(region.rows * region.columns).view(region.rows, region.columns)
        parts = [raster[window].flatten() for window in window_slices(region.rows, region.columns, WINDOW)]
        return Encoded(
            tuple(Segment(states[part], saliency[part], slots=tuple(part.tolist())) for part in parts), item.layout
        )


VISION: dict[str, type[LlavaVision]] = {
    "clip_vision_model": LlavaVision,
    "siglip_vision_model": LlavaVision,
    "pixtral": PixtralVision,
}
"""By the type of the tower."""


class LlavaLanguage(BaseLanguageHalf):
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        super().__init__(
            load_model_half(LlavaForConditionalGeneration, checkpoint, config, placement), load_processor(checkpoint)
        )

    def project(self, tokens: Tensor) -> Tensor:
        embeds: Tensor = self.model.model.multi_modal_projector(tokens)
        return embeds
