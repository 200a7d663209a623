"""InternVL, in the format of transformers.

Checkpoints: OpenGVLab/InternVL3-*-hf and others of model_type `internvl`.
Vision tower: InternViT with CLS, a pixel shuffle and a projector; any causal language model.
Cut: after the projector, where a token is as wide as the language model, 896 to 8192. Between shuffle and projector it
    is four times as wide as the tower, 4096 or 12800 numbers.
Layout: one run with the tiles in raster order, then the whole image; of a clip, a run for each frame.
Saliency: attention of CLS in the last layer that is read, summed over the patches that the shuffle makes one token of.
    CLS cannot pass the shuffle, so segments have no CLS token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.attention_saliency import record_cls_attention
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import split_scale, upload_pixels
from prunesid_cli.models.shared.processor import (
    collapse_text,
    load_processor,
    placeholder_ids,
    preprocess_frames,
    process_image,
    read_frame_options,
)
from prunesid_cli.models.shared.requirements import check_requirements
from prunesid_cli.models.shared.token_grid import frame_regions, split_by_item, tile_regions
from prunesid_cli.types import Encoded, Layout, Pixels, Placement


class InternVL:
    """Family of model_type `internvl`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse several feature layers, tokens made of CLS, and images that are not square."""
        config = load_config(checkpoint)
        layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
        height, width = config.vision_config.image_size
        requirements = (
            (isinstance(layer, int), f"joins features of layers {layer}", "a single vision_feature_layer"),
            (strategy == "default", f"shuffles CLS, too: strategy {strategy!r}", "the strategy 'default'"),
            (height == width, f"has images of {width} x {height}", "square ones"),
        )
        check_requirements(checkpoint, "InternVL", requirements)

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> InternVLVision:
        return InternVLVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> InternVLLanguage:
        return InternVLLanguage(checkpoint, placement)


class InternVLVision:
    """Vision half: tiles or frames -> shuffled and projected tokens, D wide."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        self.placeholder_ids, self.shuffle_ratio = placeholder_ids(config), config.downsample_ratio
        # Cut the tower off where its features are read. Its last norm, where it has one, is for the last layer alone.
        tower, layer = config.vision_config, config.vision_feature_layer
        if layer != -1:
            tower.num_hidden_layers = layer if layer >= 0 else tower.num_hidden_layers + 1 + layer
            tower.use_mean_pooling = True  # builds the tower without that norm
        self.placement = placement
        self.model = load_vision_model(InternVLForConditionalGeneration, checkpoint, config, placement)
        self.processor = load_processor(checkpoint)
        images = self.processor.image_processor
        self.scale, self.options = split_scale(images)
        frame_options = {"crop_to_patches": False, **read_frame_options(checkpoint, images)}
        self.frame_scale, self.frame_options = split_scale(images, **frame_options)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> tiles and the whole image, clip -> frames: [S, 3, H, W]."""
        if media.is_clip:
            return self._preprocess_clip(media)
        processed = process_image(self.processor, self.placeholder_ids, media.image, **self.options)
        pixels, rows, columns = processed.tensors["pixel_values"], 1, 1
        if len(pixels) > 1:
            images, (width, height) = self.processor.image_processor, media.image.size
            tile = (images.size["height"], images.size["width"])
            columns, rows = get_optimal_tiled_canvas((height, width), tile, images.min_patches, images.max_patches)
        regions = tile_regions(processed.runs[0] // len(pixels), rows, columns)
        return Pixels({"pixel_values": pixels}, Layout(processed.text, processed.runs, regions), self.scale)

    def _preprocess_clip(self, media: Media) -> Pixels:
        pixels = preprocess_frames(self.processor.image_processor, media.frames, **self.frame_options)
        written = self.processor.replace_video_token({"pixel_values_videos": pixels[None]}, 0)
        text, runs = collapse_text(self.processor, self.placeholder_ids, written)
        layout = Layout(text, runs, frame_regions(runs[0], media.times))
        return Pixels({"pixel_values": pixels}, layout, self.frame_scale)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images and clips -> a segment for each tile, whole image and frame."""
        tower = self.model.model.vision_tower
        with record_cls_attention(tower.encoder.layer[-1].attention) as attention:
            states = tower(upload_pixels(items, self.placement)).last_hidden_state[:, 1:]
        features = self.model.model.multi_modal_projector(self.shuffle(states))
        return split_by_item(features, self.shuffle(attention[0][..., None]).sum(-1), items)

    def shuffle(self, patches: Tensor) -> Tensor:
        """Patches [S, P, C] -> tokens [S, N, C * P / N], each the patches of one square."""
        side = round(patches.shape[1] ** 0.5)
        shuffled: Tensor = self.model.model.pixel_shuffle(patches.unflatten(1, (side, side)), self.shuffle_ratio)
        return shuffled.flatten(1, 2)


class InternVLLanguage(BaseLanguageHalf):
    """Language half: any causal language model."""

    list_modalities = ()

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        model = load_model_half(InternVLForConditionalGeneration, checkpoint, config, placement)
        super().__init__(model, load_processor(checkpoint))
