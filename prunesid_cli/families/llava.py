"""LLaVA-1.5: CLIP tower, two-layer projector, any causal language model. Cut before the projector.

Visual tokens are the hidden states of the tower that the projector reads (layer -2), 576 for CLIP-L/336; saliency is
the attention of CLS in that same layer. Layers of the tower above it are neither loaded nor run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.families.checkpoint import Checkpoint
from prunesid_cli.families.language import Language
from prunesid_cli.families.loading import load_config, load_half, load_vision
from prunesid_cli.families.processing import load_processor, pixels_of, placeholders, read_picture
from prunesid_cli.families.saliency import cls_attention
from prunesid_cli.media import Media
from prunesid_cli.types import SUMMARY, Encoded, Layout, Pixels, Placement, Region, Segment


class Llava:
    """model_type `llava` with a CLIP tower and one feature layer."""

    def check(self, checkpoint: Checkpoint) -> None:
        config = load_config(checkpoint)
        tower = getattr(config.vision_config, "model_type", "none")
        if tower != "clip_vision_model":
            raise UnsupportedModel(
                f"{checkpoint.name} has a vision tower of type {tower!r}", hint="LLaVA is supported with a CLIP tower"
            )
        if not isinstance(config.vision_feature_layer, int):
            raise UnsupportedModel(
                f"{checkpoint.name} joins features of layers {config.vision_feature_layer}",
                hint="LLaVA is supported with a single vision_feature_layer",
            )

    def vision(self, checkpoint: Checkpoint, placement: Placement) -> LlavaVision:
        return LlavaVision(checkpoint, placement)

    def language(self, checkpoint: Checkpoint, placement: Placement) -> LlavaLanguage:
        return LlavaLanguage(checkpoint, placement)


def layers_read(config: Any) -> int:
    """How many layers of the tower run before the features are read."""
    depth: int = config.vision_config.num_hidden_layers
    layer: int = config.vision_feature_layer
    return layer if layer >= 0 else depth + 1 + layer


class LlavaVision:
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = layers_read(config)
        self.placement = placement
        self.model = load_vision(LlavaForConditionalGeneration, checkpoint, config, placement)
        self.tower = self.model.model.vision_tower
        self.processor = load_processor(checkpoint)
        self.summary_slot = 0 if config.vision_feature_select_strategy == "full" else SUMMARY
        side = config.vision_config.image_size // config.vision_config.patch_size
        read = read_picture(self.processor, placeholders(config), Image.new("RGB", (side, side)))
        self.layout = Layout(read.text, read.runs, (Region(self.summary_slot + 1, side, side, side),))

    def preprocess(self, media: Media, companions: int = 0) -> Pixels:
        return Pixels({"pixel_values": pixels_of(self.processor, media.frames)}, self.layout)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        batch = torch.cat([item.tensors["pixel_values"] for item in items])
        batch = batch.to(self.placement.device, self.placement.dtype)
        encoder = getattr(self.tower, "vision_model", self.tower).encoder
        with cls_attention(encoder.layers[-1].self_attn) as rows:
            states = self.tower(batch).last_hidden_state
        slots = tuple(self.layout.regions[0].slots) if self.summary_slot != SUMMARY else None
        return [
            Encoded((Segment(one[1:], saliency, one[0], slots=slots, summary_slot=self.summary_slot),), item.layout)
            for one, saliency, item in zip(states, rows[0], items, strict=True)
        ]


class LlavaLanguage(Language):
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        super().__init__(
            load_half(LlavaForConditionalGeneration, checkpoint, config, placement), load_processor(checkpoint)
        )

    def project(self, tokens: Tensor) -> Tensor:
        embeds: Tensor = self.model.model.multi_modal_projector(tokens)
        return embeds
