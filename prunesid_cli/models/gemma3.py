"""Gemma 3: SigLIP 896/14, 4,096 patches pooled to 256 tokens by the projector. Cut after it.

Saliency is the attention that patches receive in the tower's last layer, added up over the block that makes a token.
The language model lets the tokens of one picture see each other both ways. Pan-and-scan, where a checkpoint asks for
it, makes more pictures of one: each crop is a run of its own, with text between.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma3ForConditionalGeneration

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.attention_saliency import record_received_attention
from prunesid_cli.models.shared.generation import left_pad
from prunesid_cli.models.shared.prefix_lm import BidirectionalLanguageHalf, refuse_flash_attention
from prunesid_cli.models.shared.processor import load_processor, placeholder_ids, process_image, resized_short_side
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Prompt, Region, Segment

CROPPING = (
    "do_pan_and_scan",
    "pan_and_scan_min_crop_size",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
)
"""Settings of the image processor that the processor around it overrides, unless it is told them in each call."""


class Gemma3:
    """model_type `gemma3`: those with a vision tower."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        tower = getattr(load_config(checkpoint).vision_config, "model_type", "none")
        if tower != "siglip_vision_model":
            raise UnsupportedModel(
                f"{checkpoint.name} has a vision tower of type {tower!r}", hint="Gemma 3 is supported with SigLIP"
            )

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> Gemma3Vision:
        return Gemma3Vision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> Gemma3Language:
        return Gemma3Language(checkpoint, placement)


class Gemma3Vision:
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        refuse_flash_attention(placement, "Gemma 3")
        config = load_config(checkpoint)
        self.placement = placement
        self.placeholder_ids = placeholder_ids(config)
        self.model = load_vision_model(Gemma3ForConditionalGeneration, checkpoint, config, placement)
        self.tower = self.model.model.vision_tower
        self.projector = self.model.model.multi_modal_projector
        self.processor = load_processor(checkpoint)
        own = {name: getattr(self.processor.image_processor, name, None) for name in CROPPING}
        self.cropping = {name: value for name, value in own.items() if value is not None}
        if not self.cropping.get("do_pan_and_scan"):
            self.fixed_short_side = resized_short_side(self.processor.image_processor)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        read = process_image(self.processor, self.placeholder_ids, media.image, **self.cropping)
        side = self.projector.tokens_per_side
        regions = [
            Region(number * side**2, side, side, side, box)
            for number, box in enumerate(boxes(media.size, len(read.runs) - 1))
        ]
        return Pixels({"pixel_values": read.tensors["pixel_values"]}, Layout(read.text, read.runs, tuple(regions)))

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        batch = torch.cat([item.tensors["pixel_values"] for item in items])
        batch = batch.to(self.placement.device, self.placement.dtype)
        encoder = getattr(self.tower, "vision_model", self.tower).encoder
        with record_received_attention(encoder.layers[-1].self_attn) as rows:
            states = self.tower(pixel_values=batch).last_hidden_state
        features, (saliency,) = self.projector(states), rows
        made = zip(features, self.pooled(saliency), strict=True)
        return [
            Encoded(
                tuple(Segment(*next(made), slots=tuple(region.slots)) for region in item.layout.regions), item.layout
            )
            for item in items
        ]

    def pooled(self, saliency: Tensor) -> Tensor:
        """Of patches [B, N] -> of the tokens that they are pooled to, the sum over each block [B, T]."""
        side = self.projector.patches_per_image
        blocks = self.projector.avg_pool(saliency.view(-1, 1, side, side)) * self.projector.kernel_size**2
        return blocks.flatten(1)


def boxes(size: tuple[int, int], crops: int) -> list[tuple[float, float, float, float]]:
    """What of a picture is shown: all of it, then `crops` crops, side by side along its longer side."""
    width, height = size
    longer = max(size)
    step = math.ceil(longer / max(crops, 1))
    edges = [(step * i / longer, min(step * (i + 1), longer) / longer) for i in range(crops)]
    wide = width >= height
    return [(0.0, 0.0, 1.0, 1.0), *((a, 0.0, b, 1.0) if wide else (0.0, a, 1.0, b) for a, b in edges)]


class Gemma3Language(BidirectionalLanguageHalf):
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        refuse_flash_attention(placement, "Gemma 3")
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        super().__init__(
            load_model_half(Gemma3ForConditionalGeneration, checkpoint, config, placement), load_processor(checkpoint)
        )

    def project(self, tokens: Tensor) -> Tensor:
        return tokens

    def model_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """With the types of the tokens: those of a picture that are still there see each other."""
        given = super().model_inputs(prompts)
        types = left_pad([prompt.visual[:, None] for prompt in prompts])[0].squeeze(-1)
        return given | {"token_type_ids": types.to(given["attention_mask"])}
