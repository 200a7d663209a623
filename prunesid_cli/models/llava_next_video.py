"""LLaVA-NeXT-Video: pictures as LLaVA-NeXT reads them; clips frame by frame, each pooled before the projector.

A frame of 24 x 24 patches is read as 12 x 12 tokens, without newlines. One selection runs over each frame; a token's
saliency is the sum of its patches', and the CLS of a frame, in the space of the patches, is the frame's summary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlavaNextVideoForConditionalGeneration

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.llava_next import LlavaNext, LlavaNextLanguage, LlavaNextVision, Seen, Window, segment
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared import token_grid as rasters
from prunesid_cli.models.shared.processor import load_frame_processor, placeholder_text, visible_box
from prunesid_cli.types import Encoded, Layout, Pixels, Placement

POOLS = ("average", "max")


class LlavaNextVideo(LlavaNext):
    """model_type `llava_next_video`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        super().check_supported(checkpoint)
        mode = load_config(checkpoint).spatial_pool_mode
        if mode not in POOLS:
            raise UnsupportedModel(f"{checkpoint.name} pools frames by {mode!r}", hint=f"supported: {', '.join(POOLS)}")

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaNextVideoVision:
        return LlavaNextVideoVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaNextVideoLanguage:
        return LlavaNextVideoLanguage(checkpoint, placement)


class LlavaNextVideoVision(LlavaNextVision):
    kind = LlavaNextVideoForConditionalGeneration

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        super().__init__(checkpoint, placement)
        self.frames = load_frame_processor(checkpoint, self.processor.image_processor)
        self.stride: int = self.model.config.spatial_pool_stride

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        if not media.is_clip:
            return super().preprocess(media, num_other_images)
        frames = self.frames(images=list(media.frames), return_tensors="pt")["pixel_values"]
        size = (self.side // self.stride) ** 2
        regions = rasters.frame_regions(size, media.times, visible_box(self.frames, media.size))
        layout = Layout(str(placeholder_text(self.processor, True)), (len(frames) * size,), regions)
        return Pixels({"pixel_values_videos": frames}, layout)

    def encoded(self, item: Pixels, seen: Seen) -> Encoded:
        if not item.layout.is_clip:
            return super().encoded(item, seen)
        pooled = Seen(self.pooled(seen.features), self.summed(seen.saliency), seen.cls)
        windows = [Window(frame, 0, 0, region) for frame, region in enumerate(item.layout.regions)]
        return Encoded(tuple(segment(window, pooled) for window in windows), item.layout)

    def pooled(self, features: Tensor) -> Tensor:
        """[B, R, R, C] -> [B, R / stride, R / stride, C]"""
        side = features.shape[1] // self.stride
        rows: Tensor = self.model.model.vision_resampler(features.flatten(1, 2))
        return rows.unflatten(1, (side, side))

    def summed(self, saliency: Tensor) -> Tensor:
        """[B, R, R] -> [B, R / stride, R / stride]"""
        return torch.nn.functional.avg_pool2d(saliency, self.stride) * self.stride**2


class LlavaNextVideoLanguage(LlavaNextLanguage):
    kind = LlavaNextVideoForConditionalGeneration
