"""Video-LLaVA: a CLIP tower for pictures and another for clips, one projector for both. Cut before the projector.

Visual tokens and saliency are those of LLaVA-1.5, of each picture or frame. Of a clip the model reads CLS, too: each
frame is CLS and then its patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.attention_saliency import record_cls_attention
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.processor import (
    load_frame_processor,
    load_processor,
    placeholder_ids,
    placeholder_text,
    process_image,
    resized_short_side,
    visible_box,
)
from prunesid_cli.models.shared.token_grid import Box
from prunesid_cli.models.shared.vision_tower import trim_tower
from prunesid_cli.types import CLS_NOT_READ, Encoded, Layout, Pixels, Placement, Region, Segment

PICTURE, CLIP = "pixel_values", "pixel_values_videos"


class VideoLlava:
    """model_type `video_llava` with CLIP towers and one feature layer."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        config = load_config(checkpoint)
        tower = getattr(config.vision_config, "model_type", "none")
        layer = config.vision_feature_layer
        known = (
            (tower == "clip_vision_model", f"vision towers of type {tower!r}", "CLIP towers"),
            (isinstance(layer, int), f"features of layers {layer} joined", "a single vision_feature_layer"),
        )
        for is_known, what, supported in known:
            if not is_known:
                raise UnsupportedModel(f"{checkpoint.name} has {what}", f"Video-LLaVA is supported with {supported}")

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> VideoLlavaVision:
        return VideoLlavaVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> VideoLlavaLanguage:
        return VideoLlavaLanguage(checkpoint, placement)


class VideoLlavaVision:
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        trim_tower(config)
        self.placement = placement
        self.model = load_vision_model(VideoLlavaForConditionalGeneration, checkpoint, config, placement)
        self.towers = {PICTURE: self.model.model.image_tower, CLIP: self.model.model.video_tower}
        self.processor = load_processor(checkpoint)
        self.fixed_short_side = resized_short_side(self.processor.image_processor)
        self.frames = load_frame_processor(checkpoint, self.processor.image_processor)
        self.side = config.vision_config.image_size // config.vision_config.patch_size
        read = process_image(self.processor, placeholder_ids(config), Image.new("RGB", (self.side, self.side)))
        first = int(config.vision_feature_select_strategy == "full")
        self.layout = Layout(read.text, read.runs, (Region(first, self.side, self.side, self.side),))

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        processor = self.frames if media.is_clip else self.processor.image_processor
        made = processor(images=list(media.frames), return_tensors="pt")
        pixels = next(iter(made.values()))  # the only one, whose name depends on the processor
        if media.is_clip:
            return Pixels({CLIP: pixels}, self._layout_of_clip(media.times, visible_box(processor, media.size)))
        region = replace(self.layout.regions[0], box=visible_box(processor, media.size))
        return Pixels({PICTURE: pixels}, replace(self.layout, regions=(region,)))

    def _layout_of_clip(self, times: Sequence[float], box: Box) -> Layout:
        frame = 1 + self.side**2
        regions = tuple(
            Region(i * frame + 1, self.side, self.side, self.side, box, time) for i, time in enumerate(times)
        )
        return Layout(placeholder_text(self.processor, True) or "", (len(times) * frame,), regions)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Pictures at once, and clips."""
        encoded = dict[int, Encoded]()
        for kind in self.towers:
            some = {number: item for number, item in enumerate(items) if kind in item.tensors}
            if some:
                encoded |= zip(some, self._seen(kind, list(some.values())), strict=True)
        return [encoded[number] for number in range(len(items))]

    def _seen(self, kind: str, items: Sequence[Pixels]) -> list[Encoded]:
        """Items of one kind through its tower."""
        tower = self.towers[kind]
        pixels = torch.cat([item.tensors[kind] for item in items]).to(self.placement.device, self.placement.dtype)
        with record_cls_attention(getattr(tower, "vision_model", tower).encoder.layers[-1].self_attn) as rows:
            states = tower(pixels).last_hidden_state
        seen = zip(states, rows[0], strict=True)
        return [
            Encoded(tuple(_segment(region, *next(seen)) for region in layout.regions), layout)
            for layout in (item.layout for item in items)
        ]


def _segment(region: Region, states: Tensor, saliency: Tensor) -> Segment:
    """CLS and the patches of a picture or frame, at the slots that the stock model reads them at."""
    before = region.first - 1 if region.first else CLS_NOT_READ
    return Segment(states[1:], saliency, states[0], slots=tuple(region.slots), cls_slot=before)


class VideoLlavaLanguage(BaseLanguageHalf):
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        super().__init__(
            load_model_half(VideoLlavaForConditionalGeneration, checkpoint, config, placement), load_processor(checkpoint)
        )

    def project(self, tokens: Tensor) -> Tensor:
        embeds: Tensor = self.model.model.multi_modal_projector(tokens)
        return embeds
