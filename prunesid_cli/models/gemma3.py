"""Gemma 3.

Checkpoints: google/gemma-3-4b-it, -12b-it, -27b-it; those with a vision tower.
Vision tower: SigLIP 896/14, 4,096 patches, which the projector averages to 256 tokens.
Cut: after the projector, where a token is as wide as the language model.
Layout: 256 tokens in raster order. With pan-and-scan, where a checkpoint asks for it, the whole image is followed by
    crops of it; each is a run of its own, with text between. The tokens of one run attend to each other both ways.
Saliency: attention that patches receive in the tower's last layer, summed over the block that makes a token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import Gemma3ForConditionalGeneration

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.attention_saliency import record_received_attention
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import split_scale, upload_pixels
from prunesid_cli.models.shared.processor import load_processor, placeholder_ids, process_image, resized_short_side
from prunesid_cli.models.shared.requirements import check_requirements, refuse_flash_attention
from prunesid_cli.models.shared.token_grid import split_by_item
from prunesid_cli.models.shared.vision_tower import tower_type
from prunesid_cli.types import WHOLE_IMAGE, Box, Encoded, Layout, Pixels, Placement, Region

PAN_AND_SCAN_SETTINGS = (
    "do_pan_and_scan",
    "pan_and_scan_min_crop_size",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
)
"""Settings of the image processor that the stock processor overrides, unless each call passes them."""


class Gemma3:
    """Family of model_type `gemma3`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse towers other than SigLIP."""
        tower = tower_type(load_config(checkpoint))
        problem = f"has a vision tower of type {tower!r}"
        check_requirements(checkpoint, "Gemma 3", ((tower == "siglip_vision_model", problem, "SigLIP"),))

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> Gemma3Vision:
        return Gemma3Vision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> Gemma3Language:
        return Gemma3Language(checkpoint, placement)


class Gemma3Vision:
    """Vision half: an image and its crops -> projected tokens, D wide."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        refuse_flash_attention(placement, "Gemma 3")
        config = load_config(checkpoint)
        self.placement = placement
        self.placeholder_ids = placeholder_ids(config)
        self.model = load_vision_model(Gemma3ForConditionalGeneration, checkpoint, config, placement)
        self.tower = self.model.model.vision_tower
        self.projector = self.model.model.multi_modal_projector
        self.processor = load_processor(checkpoint)
        images = self.processor.image_processor
        pan_and_scan = {
            name: value for name in PAN_AND_SCAN_SETTINGS if (value := getattr(images, name, None)) is not None
        }
        self.scale, options = split_scale(images, do_pan_and_scan=False)
        self.options = options | pan_and_scan
        if not pan_and_scan.get("do_pan_and_scan"):
            self.fixed_short_side = resized_short_side(images)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> the whole image and its crops [S, 3, H, W]."""
        processed = process_image(self.processor, self.placeholder_ids, media.image, **self.options)
        side = self.projector.tokens_per_side
        regions = tuple(
            Region(number * side**2, side, side, side, box)
            for number, box in enumerate(crop_boxes(media.size, len(processed.runs) - 1))
        )
        layout = Layout(processed.text, processed.runs, regions)
        return Pixels({"pixel_values": processed.tensors["pixel_values"]}, layout, self.scale)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images -> a segment for the whole image and for each crop."""
        encoder = getattr(self.tower, "vision_model", self.tower).encoder
        with record_received_attention(encoder.layers[-1].self_attn) as attention:
            states = self.tower(pixel_values=upload_pixels(items, self.placement)).last_hidden_state
        # Average pooling, as of the states, then times the size of a block: the sum of its patches.
        side = self.projector.patches_per_image
        blocks = self.projector.avg_pool(attention[0].view(-1, 1, side, side)) * self.projector.kernel_size**2
        return split_by_item(self.projector(states), blocks.flatten(1), items)


def crop_boxes(size: tuple[int, int], num_crops: int) -> list[Box]:
    """Find the parts of an image that pan-and-scan shows.

    Args:
        size: Width and height of the image in pixels.
        num_crops: Number of crops.

    Returns:
        The whole image, then the crops, side by side along its longer side.
    """
    width, height = size
    longer = max(size)
    step = math.ceil(longer / max(num_crops, 1))
    boxes = [WHOLE_IMAGE]
    for number in range(num_crops):
        start, end = step * number / longer, min(step * (number + 1), longer) / longer
        boxes.append((start, 0.0, end, 1.0) if width >= height else (0.0, start, 1.0, end))
    return boxes


class Gemma3Language(BaseLanguageHalf):
    """Language half: Gemma 3, with bidirectional attention among the tokens of an image."""

    joins_images = True
    list_modalities = ()

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        refuse_flash_attention(placement, "Gemma 3")
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        model = load_model_half(Gemma3ForConditionalGeneration, checkpoint, config, placement)
        super().__init__(model, load_processor(checkpoint))
