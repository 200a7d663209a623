"""Video-LLaVA.

Checkpoints: LanguageBind/Video-LLaVA-7B-hf.
Vision tower: one CLIP for images and another one for clips, layer -2; one projector for both.
Cut: before the projector, where a token is as wide as the tower.
Layout: an image is the raster of its patches, with CLS before it for the strategy 'full'. Of a clip the model always
    reads CLS: each frame is CLS and then its patches.
Saliency: attention of CLS in the layer that is read, of each image or frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import VideoLlavaForConditionalGeneration

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.frame_preprocessor import FramePreprocessor
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import upload_pixels
from prunesid_cli.models.shared.processor import (
    load_frame_processor,
    load_processor,
    pad_instead_of_cropping,
    placeholder_ids,
    placeholder_text,
    process_image,
    resized_short_side,
    visible_box,
)
from prunesid_cli.models.shared.registered_attention import record_attention
from prunesid_cli.models.shared.requirements import check_requirements
from prunesid_cli.models.shared.vision_tower import tower_type, trim_tower
from prunesid_cli.types import CLS_NOT_READ, Box, Encoded, Layout, Pixels, Placement, Region, Segment

IMAGE_PIXELS, CLIP_PIXELS = "pixel_values", "pixel_values_videos"
"""Names of the pixels, as in the arguments of the stock model."""


class VideoLlava:
    """Family of model_type `video_llava`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse towers other than CLIP, and several feature layers."""
        config = load_config(checkpoint)
        tower, layer = tower_type(config), config.vision_feature_layer
        requirements = (
            (tower == "clip_vision_model", f"has vision towers of type {tower!r}", "CLIP towers"),
            (isinstance(layer, int), f"has features of layers {layer} joined", "a single vision_feature_layer"),
        )
        check_requirements(checkpoint, "Video-LLaVA", requirements)

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> VideoLlavaVision:
        return VideoLlavaVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> VideoLlavaLanguage:
        return VideoLlavaLanguage(checkpoint, placement)


class VideoLlavaVision:
    """Vision half: images and frames -> features of their tower, C wide."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        trim_tower(config)
        self.placement = placement
        self.model = load_vision_model(VideoLlavaForConditionalGeneration, checkpoint, config, placement)
        self.towers = {IMAGE_PIXELS: self.model.model.image_tower, CLIP_PIXELS: self.model.model.video_tower}
        self.processor = load_processor(checkpoint)
        self.fixed_short_side = resized_short_side(self.processor.image_processor)
        frame_processor = load_frame_processor(checkpoint, self.processor.image_processor)
        self.images, self.frames = map(self._make_preprocessor, (self.processor.image_processor, frame_processor))
        # The layout is the same for all images, but for the part of the image that it shows.
        self.side = config.vision_config.image_size // config.vision_config.patch_size
        image = Image.new("RGB", (self.side, self.side))
        processed = process_image(self.processor, placeholder_ids(config), image)
        first = int(config.vision_feature_select_strategy == "full")
        self.image_layout = Layout(processed.text, processed.runs, (Region(first, self.side, self.side, self.side),))

    @staticmethod
    def _make_preprocessor(image_processor: Any) -> FramePreprocessor:
        # Told where the channels are, the processor does not guess: of an image 1 or 3 pixels high it guesses wrongly.
        return FramePreprocessor(image_processor, input_data_format="channels_last")

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> pixels [1, 3, H, W], clip -> frames [T, 3, H, W]."""
        preprocessor = self.frames if media.is_clip else self.images
        pixels, box = preprocessor(media.frames), visible_box(preprocessor.image_processor, media.size)
        if media.is_clip:
            return Pixels({CLIP_PIXELS: pixels}, self._clip_layout(media.times, box), preprocessor.scale)
        region = replace(self.image_layout.regions[0], box=box)
        return Pixels({IMAGE_PIXELS: pixels}, replace(self.image_layout, regions=(region,)), preprocessor.scale)

    def pad_to_square(self) -> None:
        """See `VisionHalf`."""
        processors = [pad_instead_of_cropping(each.image_processor) for each in (self.images, self.frames)]
        self.images, self.frames = map(self._make_preprocessor, processors)

    def _clip_layout(self, times: Sequence[float], box: Box) -> Layout:
        """Layout of frames that show `box`: the first slot of each is its CLS."""
        frame_slots = 1 + self.side**2
        regions = tuple(
            Region(number * frame_slots + 1, self.side, self.side, self.side, box, time)
            for number, time in enumerate(times)
        )
        return Layout(placeholder_text(self.processor, True) or "", (len(times) * frame_slots,), regions)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images and clips -> a segment for each image or frame. All images share one pass, and all clips another."""
        encoded: dict[int, Encoded] = {}
        for name, tower in self.towers.items():
            numbers = [number for number, item in enumerate(items) if name in item.tensors]
            if not numbers:
                continue
            pixels = upload_pixels([items[number] for number in numbers], self.placement)
            with record_attention([getattr(tower, "vision_model", tower).encoder.layers[-1].self_attn]) as calls:
                states = tower(pixels).last_hidden_state
            rows = zip(states, calls[0].of_first()[:, 1:], strict=True)
            for number in numbers:
                layout = items[number].layout
                segments = []
                for region in layout.regions:
                    frame_states, saliency = next(rows)
                    segment = Segment(
                        features=frame_states[1:],
                        saliency=saliency,
                        cls=frame_states[0],
                        slots=tuple(region.slots),
                        cls_slot=region.first - 1 if region.first else CLS_NOT_READ,
                    )
                    segments.append(segment)
                encoded[number] = Encoded(tuple(segments), layout)
        return [encoded[number] for number in range(len(items))]


class VideoLlavaLanguage(BaseLanguageHalf):
    """Language half: projector and Vicuna."""

    list_modalities = ()

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        model = load_model_half(VideoLlavaForConditionalGeneration, checkpoint, config, placement)
        super().__init__(model, load_processor(checkpoint))

    def project(self, tokens: Tensor) -> Tensor:
        """[T, C] -> [T, D]."""
        embeds: Tensor = self.model.model.multi_modal_projector(tokens)
        return embeds
