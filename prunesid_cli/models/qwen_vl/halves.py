"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL.

Checkpoints: Qwen/Qwen2-VL-*, Qwen/Qwen2.5-VL-*, Qwen/Qwen3-VL-*, dense ones.
Vision tower: Qwen's own, for images of any size. The merger makes one token of each cell of 2 x 2 patches.
Cut: after the merger, where a token is as wide as the language model (D). Qwen3-VL also adds features of K further
    tower layers to its visual tokens inside the language model (deepstack); they follow the token's own: D * (1 + K).
Layout: raster order. Of a clip, a raster for each temporal patch, which is a pair of frames; Qwen3-VL writes a
    timestamp before each, so each is a run. Positions are M-RoPE: time, row, column.
Saliency: there is no CLS; it is the attention that a cell receives in the last layer that sees whole images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import transformers

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint, first_line
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.qwen_vl.processor import QwenPreprocessor
from prunesid_cli.models.qwen_vl.saliency import append_saliency
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import upload_pixels
from prunesid_cli.models.shared.processor import load_processor
from prunesid_cli.models.shared.requirements import check_requirements
from prunesid_cli.models.shared.window_segments import window_segments
from prunesid_cli.selection.methods.published import published_qwen
from prunesid_cli.types import Encoded, Pixels, Placement

MODEL_CLASSES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
WINDOW_SIDE = 32
"""A segment has at most this many tokens squared."""


class QwenVL:
    """Family of model_type `qwen2_vl`, `qwen2_5_vl`, `qwen3_vl`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse a tower of Qwen2.5-VL in which every layer sees windows only."""
        layers = getattr(load_config(checkpoint).vision_config, "fullatt_block_indexes", [0])
        problem = "has no layer that sees whole images (fullatt_block_indexes is empty)"
        check_requirements(checkpoint, "Qwen2.5-VL", ((bool(layers), problem, "at least one"),))

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> QwenVision:
        return QwenVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> QwenLanguage:
        return QwenLanguage(checkpoint, placement)


class QwenVision:
    """Vision half: patches -> merged tokens, D wide, with the K * D features of deepstack in `extra`."""

    methods = {"prunesid-published": published_qwen}
    """Selection methods that this family replaces by another one: the published code differs by model."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        model_class = getattr(transformers, MODEL_CLASSES[checkpoint.model_type])
        self.placement = placement
        self.model = load_vision_model(model_class, checkpoint, config, placement)
        self.tower = self.model.model.visual
        last_full = max(getattr(config.vision_config, "fullatt_block_indexes", [-1]))
        self.saliency_attention = self.tower.blocks[last_full].attn
        self.preprocessor = QwenPreprocessor(checkpoint, self.model.model.get_rope_index)
        self.processor = self.preprocessor.processor

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image or clip -> patches [P, E] and their grid [1, 3]."""
        try:
            if media.is_clip:
                return self.preprocessor.process_clip(media)
            return self.preprocessor.process_image(media.image)
        except ValueError as error:
            width, height = media.size
            raise MediaError(
                f"{media.source}: {width} x {height} pixels cannot be read by this model: {first_line(error)}",
                hint="crop it, so that no side is more than 200 times the other",
            ) from error

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images and clips -> a segment for each window of each raster."""
        grids = [item.tensors["video_grid_thw" if item.layout.is_clip else "image_grid_thw"] for item in items]
        grid = torch.cat(grids)
        lengths = [height * width for time, height, width in grid.tolist() for _ in range(time)]
        with append_saliency(self.saliency_attention, self.tower.merger, lengths):
            output = self.tower(upload_pixels(items, self.placement), grid_thw=grid.to(self.placement.device))
        features = output.pooler_output[:, :-1].to(self.placement.dtype)
        saliency = output.pooler_output[:, -1]
        deepstack = getattr(output, "deepstack_features", None)
        extra = torch.cat(deepstack, -1) if deepstack else None
        encoded, start = [], 0
        for item in items:
            segments = []
            for region in item.layout.regions:
                rows = slice(start + region.first, start + region.first + region.rows * region.columns)
                segments += window_segments(
                    region, WINDOW_SIDE, features[rows], saliency[rows], None if extra is None else extra[rows]
                )
            encoded.append(Encoded(tuple(segments), item.layout))
            start += item.layout.total
        return encoded


class QwenLanguage(BaseLanguageHalf):
    """Language half: Qwen2, Qwen2.5 or Qwen3 with M-RoPE."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.depth = 0
        # Settings that name layers of the tower, where a model has them.
        for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            if hasattr(config.vision_config, name):
                setattr(config.vision_config, name, [])
        model_class = getattr(transformers, MODEL_CLASSES[checkpoint.model_type])
        super().__init__(load_model_half(model_class, checkpoint, config, placement), load_processor(checkpoint))
