"""InternVL (transformers' own format): InternViT with CLS, pixel shuffle, projector, any causal language model.

Cut after the projector: behind the shuffle alone a token is four times as wide as the tower, 4096 or 12800 numbers, and
after it as wide as the language model, 896 to 8192. CLS cannot pass the shuffle, so there is no summary. Saliency is
the attention of CLS in the last layer that is read, summed over the patches that the shuffle makes one token of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import InternVLForConditionalGeneration
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.attention_saliency import record_cls_attention
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.processor import (
    collapse_text,
    load_processor,
    placeholder_ids,
    preprocess_frames,
    process_image,
    read_frame_options,
)
from prunesid_cli.models.shared.token_grid import frame_regions, split_by_item, tile_regions
from prunesid_cli.types import Encoded, Layout, Pixels, Placement


class InternVL:
    """model_type `internvl` with one feature layer and square pictures."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        config = load_config(checkpoint)
        layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
        height, width = config.vision_config.image_size
        refused = (
            (not isinstance(layer, int), f"joins features of layers {layer}", "a single vision_feature_layer"),
            (strategy != "default", f"shuffles CLS, too: strategy {strategy!r}", "the strategy 'default'"),
            (height != width, f"has pictures of {width} x {height}", "square ones"),
        )
        for is_so, problem, known in refused:
            if is_so:
                raise UnsupportedModel(f"{checkpoint.name} {problem}", hint=f"InternVL is supported with {known}")

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> InternVLVision:
        return InternVLVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> InternVLLanguage:
        return InternVLLanguage(checkpoint, placement)


def _read_to(config: Any) -> None:
    """Cut the tower off where its features are read. Its last norm, where it has one, is for the last layer alone."""
    vision, layer = config.vision_config, config.vision_feature_layer
    if layer != -1:
        vision.num_hidden_layers = layer if layer >= 0 else vision.num_hidden_layers + 1 + layer
        vision.use_mean_pooling = True  # which is to say: without that norm


class InternVLVision:
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        self.placeholder_ids, self.ratio = placeholder_ids(config), config.downsample_ratio
        _read_to(config)
        self.placement = placement
        self.model = load_vision_model(InternVLForConditionalGeneration, checkpoint, config, placement)
        self.processor = load_processor(checkpoint)
        self.frame_options = read_frame_options(checkpoint, self.processor.image_processor)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        if media.is_clip:
            return self._clip(media)
        read = process_image(self.processor, self.placeholder_ids, media.image)
        pixels = read.tensors["pixel_values"]
        regions = tile_regions(read.runs[0] // len(pixels), *self._grid(media, len(pixels)))
        return Pixels({"pixel_values": pixels}, Layout(read.text, read.runs, regions))

    def _grid(self, media: Media, count: int) -> tuple[int, int]:
        """Rows and columns of the tiles that the processor made of a picture, the small whole not counted."""
        if count == 1:
            return 1, 1
        processor, (width, height) = self.processor.image_processor, media.image.size
        size = (processor.size["height"], processor.size["width"])
        columns, rows = get_optimal_tiled_canvas((height, width), size, processor.min_patches, processor.max_patches)
        return rows, columns

    def _clip(self, media: Media) -> Pixels:
        pixels = preprocess_frames(self.processor, media.frames, crop_to_patches=False, **self.frame_options)
        written = self.processor.replace_video_token({"pixel_values_videos": pixels[None]}, 0)
        text, runs = collapse_text(self.processor, self.placeholder_ids, written)
        return Pixels({"pixel_values": pixels}, Layout(text, runs, frame_regions(runs[0], media.times)))

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        batch = torch.cat([item.tensors["pixel_values"] for item in items])
        batch = batch.to(self.placement.device, self.placement.dtype)
        tower = self.model.model.vision_tower
        with record_cls_attention(tower.encoder.layer[-1].attention) as rows:
            states = tower(batch).last_hidden_state[:, 1:]
        features = self.model.model.multi_modal_projector(self._shuffled(states))
        return split_by_item(features, self._shuffled(rows[0][..., None]).sum(-1), items)

    def _shuffled(self, patches: Tensor) -> Tensor:
        """Patches [S, P, C] -> tokens [S, N, C * P / N], each the patches of one square."""
        side = round(patches.shape[1] ** 0.5)
        made: Tensor = self.model.model.pixel_shuffle(patches.unflatten(1, (side, side)), self.ratio)
        return made.flatten(1, 2)


class InternVLLanguage(BaseLanguageHalf):
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        super().__init__(
            load_model_half(InternVLForConditionalGeneration, checkpoint, config, placement), load_processor(checkpoint)
        )

    def project(self, tokens: Tensor) -> Tensor:
        return tokens
