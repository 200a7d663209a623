"""LLaVA-NeXT-Video.

Checkpoints: llava-hf/LLaVA-NeXT-Video-7B-hf and others of model_type `llava_next_video`.
Vision tower: as in LLaVA-NeXT; images are read as LLaVA-NeXT reads them.
Cut: before the projector. A frame is pooled before it, so a token of a clip is as wide as the tower, too.
Layout: of a clip, the frames one after the other, 24 x 24 patches pooled to 12 x 12 tokens, without newlines. A segment
    is a frame.
Saliency: as in LLaVA-NeXT; of a pooled token, the sum over its patches. The CLS of a frame is the CLS token of its
    segment.
"""

from __future__ import annotations

import torch
from transformers import LlavaNextVideoForConditionalGeneration

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.llava_next import LlavaNext, LlavaNextLanguage, LlavaNextVision, TowerOutput
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.frame_preprocessor import FramePreprocessor
from prunesid_cli.models.shared.processor import (
    load_frame_processor,
    pad_instead_of_cropping,
    placeholder_text,
    visible_box,
)
from prunesid_cli.models.shared.requirements import check_requirements
from prunesid_cli.models.shared.token_grid import frame_regions
from prunesid_cli.types import Layout, Pixels, Placement, Segment

POOL_MODES = ("average", "max")


class LlavaNextVideo(LlavaNext):
    """Family of model_type `llava_next_video`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse what LLaVA-NeXT refuses, and frames pooled by a convolution."""
        super().check_supported(checkpoint)
        mode = load_config(checkpoint).spatial_pool_mode
        requirement = (mode in POOL_MODES, f"pools frames by {mode!r}", " or ".join(POOL_MODES))
        check_requirements(checkpoint, "LLaVA-NeXT-Video", (requirement,))

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaNextVideoVision:
        return LlavaNextVideoVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaNextVideoLanguage:
        return LlavaNextVideoLanguage(checkpoint, placement)


class LlavaNextVideoVision(LlavaNextVision):
    """Vision half: tiles or frames -> features of the tower, C wide; those of frames pooled."""

    model_class = LlavaNextVideoForConditionalGeneration

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        super().__init__(checkpoint, placement)
        self.frames = FramePreprocessor(load_frame_processor(checkpoint, self.processor.image_processor))
        self.pool_stride: int = self.model.config.spatial_pool_stride

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> as in LLaVA-NeXT; clip -> frames [T, 3, H, W]."""
        if not media.is_clip:
            return super().preprocess(media, num_other_images)
        frames = self.frames(media.frames)
        frame_tokens = (self.side // self.pool_stride) ** 2
        regions = frame_regions(frame_tokens, media.times, visible_box(self.frames.image_processor, media.size))
        layout = Layout(str(placeholder_text(self.processor, True)), (len(frames) * frame_tokens,), regions)
        return Pixels({"pixel_values_videos": frames}, layout, self.frames.scale)

    def pad_to_square(self) -> None:
        """See `VisionHalf`. Images are read in tiles, which show all of them; frames are not."""
        self.frames = FramePreprocessor(pad_instead_of_cropping(self.frames.image_processor))

    def make_segments(self, item: Pixels, output: TowerOutput) -> tuple[Segment, ...]:
        """The segments of an item: tiles of an image, or pooled frames of a clip."""
        if not item.layout.is_clip:
            return super().make_segments(item, output)
        features = self.model.model.vision_resampler(output.features.flatten(1, 2))  # [T, N, C]
        saliency = torch.nn.functional.avg_pool2d(output.saliency, self.pool_stride) * self.pool_stride**2
        return tuple(
            Segment(
                features=features[frame],
                saliency=saliency[frame].flatten(),
                cls=None if output.cls is None else output.cls[frame],
                slots=tuple(region.slots),
            )
            for frame, region in enumerate(item.layout.regions)
        )


class LlavaNextVideoLanguage(LlavaNextLanguage):
    """Language half: projector and language model."""

    model_class = LlavaNextVideoForConditionalGeneration
