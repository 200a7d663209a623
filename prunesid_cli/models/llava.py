"""LLaVA-1.5 and others of its type.

Checkpoints: llava-hf/llava-1.5-7b-hf, -13b-hf and others of model_type `llava`; any causal language model.
Vision tower: CLIP, SigLIP or Pixtral; the features of vision_feature_layer. Layers above it are neither loaded nor run.
Cut: before the two-layer projector, where a token is as wide as the tower (times the number of feature layers).
Layout: CLIP and SigLIP: one raster, 576 tokens for CLIP-L/336 (layer -2); with the strategy 'full', CLIP's CLS before
    it. Pixtral: a run for each row of patches, with text between.
Saliency: attention of CLS in the last layer that is read; without CLS, the attention that a patch receives there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.frame_preprocessor import FramePreprocessor
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import upload_pixels
from prunesid_cli.models.shared.processor import (
    load_processor,
    load_processor_settings,
    pad_instead_of_cropping,
    placeholder_ids,
    process_image,
    resized_short_side,
    visible_box,
    write_rows,
)
from prunesid_cli.models.shared.vision_tower import VisionTower, check_tower, tower_type, trim_tower
from prunesid_cli.models.shared.window_segments import window_segments
from prunesid_cli.types import CLS_NOT_READ, Encoded, Layout, Pixels, Placement, Region, Segment

TOWERS = ("clip_vision_model", "siglip_vision_model", "pixtral")
WINDOW_SIDE = 32
"""A segment of Pixtral's rasters, which have up to 64 x 64 tokens, has at most this many tokens squared."""


class Llava:
    """Family of model_type `llava`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse other towers, and features that they do not have."""
        check_tower(checkpoint, load_config(checkpoint), TOWERS)

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaVision | PixtralVision:
        if tower_type(load_config(checkpoint)) == "pixtral":
            return PixtralVision(checkpoint, placement)
        return LlavaVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaLanguage:
        return LlavaLanguage(checkpoint, placement)


class LlavaVision:
    """Vision half with CLIP or SigLIP: an image, resized to one size -> features of the tower, C wide."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        feature_layers = trim_tower(config)
        self.placement = placement
        self.model = load_vision_model(LlavaForConditionalGeneration, checkpoint, config, placement)
        self.tower = VisionTower(tower_type(config), self.model.model.vision_tower, feature_layers)
        self.processor = load_processor(checkpoint)
        self.fixed_short_side = resized_short_side(self.processor.image_processor)
        self.preprocessor = FramePreprocessor(self.processor.image_processor)
        reads_cls = self.tower.type.has_cls and config.vision_feature_select_strategy == "full"
        self.cls_slot = 0 if reads_cls else CLS_NOT_READ
        # The layout is the same for all images, but for the part of the image that it shows.
        side = config.vision_config.image_size // config.vision_config.patch_size
        processed = process_image(self.processor, placeholder_ids(config), Image.new("RGB", (side, side)))
        self.layout = Layout(processed.text, processed.runs, (Region(self.cls_slot + 1, side, side, side),))

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> pixels [1, 3, H, W]."""
        region = replace(self.layout.regions[0], box=visible_box(self.preprocessor.image_processor, media.size))
        pixels = self.preprocessor(media.frames)
        return Pixels({"pixel_values": pixels}, replace(self.layout, regions=(region,)), self.preprocessor.scale)

    def pad_to_square(self) -> None:
        """See `VisionHalf`."""
        self.preprocessor = FramePreprocessor(pad_instead_of_cropping(self.preprocessor.image_processor))

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images -> one segment each."""
        features, saliency = self.tower(upload_pixels(items, self.placement))
        encoded = []
        for number, item in enumerate(items):
            if self.tower.type.has_cls:
                segment = Segment(
                    features=features[number, 1:],
                    saliency=saliency[number],
                    cls=features[number, 0],
                    slots=None if self.cls_slot == CLS_NOT_READ else tuple(item.layout.regions[0].slots),
                    cls_slot=self.cls_slot,
                )
            else:
                segment = Segment(features[number], saliency[number])
            encoded.append(Encoded((segment,), item.layout))
        return encoded


class PixtralVision:
    """Vision half with Pixtral: an image of any size, in whole patches -> features of the tower, C wide."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        feature_layers = trim_tower(config)
        self.placement = placement
        self.patch_size: int = config.vision_config.patch_size
        self.model = load_vision_model(LlavaForConditionalGeneration, checkpoint, config, placement)
        self.tower = VisionTower("pixtral", self.model.model.vision_tower, feature_layers)
        self.processor = load_processor(checkpoint)
        self.preprocessor = FramePreprocessor(self.processor.image_processor, patch_size=self.patch_size)
        self.settings = load_processor_settings(checkpoint)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> pixels [1, 3, H, W]. The text is written here, as transformers' processor needs torchvision."""
        pixels = self.preprocessor(media.frames)
        rows, columns = (length // self.patch_size for length in pixels.shape[-2:])
        layout = Layout(
            write_rows(self.processor, self.settings, rows), (columns,) * rows, (Region(0, rows, columns, columns),)
        )
        return Pixels({"pixel_values": pixels}, layout, self.preprocessor.scale)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images -> a segment for each window of the raster.

        Images go through the tower one by one: it would lay a batch end to end and attend over all of it.
        """
        encoded = []
        for item in items:
            features, saliency = self.tower(upload_pixels([item], self.placement))
            (region,) = item.layout.regions
            segments = window_segments(region, WINDOW_SIDE, features[0], saliency[0])
            encoded.append(Encoded(tuple(segments), item.layout))
        return encoded


class LlavaLanguage(BaseLanguageHalf):
    """Language half: projector and language model."""

    item_tokens = (r"\[IMG_BREAK\]", r"\[IMG_END\]")  # of Pixtral

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        model = load_model_half(LlavaForConditionalGeneration, checkpoint, config, placement)
        super().__init__(model, load_processor(checkpoint))

    def project(self, tokens: Tensor) -> Tensor:
        """[T, C] -> [T, D]."""
        embeds: Tensor = self.model.model.multi_modal_projector(tokens)
        return embeds
