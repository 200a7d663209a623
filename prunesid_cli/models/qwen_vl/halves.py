"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL, Qwen3.5 and Qwen3.6.

Checkpoints: Qwen/Qwen2-VL-*, Qwen/Qwen2.5-VL-*, Qwen/Qwen3-VL-*, Qwen/Qwen3.5-*, Qwen/Qwen3.6-*; with experts, too.
Vision tower: Qwen's own, for images of any size. The merger makes one token of each cell of 2 x 2 patches.
Cut: after the merger, where a token is as wide as the language model (D). Qwen3-VL also adds features of K further
    tower layers to its visual tokens inside the language model (deepstack); they follow the token's own: D * (1 + K).
Layout: raster order. Of a clip, a raster for each temporal patch, which is a pair of frames; Qwen3-VL writes a
    timestamp before each, so each is a run. Positions are M-RoPE: time, row, column.
Saliency: there is no CLS; it is the attention that a cell receives in the last layer that sees whole images.

Both halves are those of the generic adapter, which reads no clips. Those are added here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint, first_line
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.qwen_vl.processor import QwenPreprocessor
from prunesid_cli.models.shared.pixel_scale import upload_pixels
from prunesid_cli.models.shared.requirements import check_requirements
from prunesid_cli.models.spliced.halves import Spliced, SplicedVision
from prunesid_cli.selection.methods.published import published_qwen
from prunesid_cli.types import Pixels, Placement


class QwenVL(Spliced):
    """Family of all types of Qwen-VL."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse a tower of Qwen2.5-VL in which every layer sees windows only."""
        super().check_supported(checkpoint)
        layers = getattr(load_config(checkpoint).vision_config, "fullatt_block_indexes", [0])
        problem = "has no layer that sees whole images (fullatt_block_indexes is empty)"
        check_requirements(checkpoint, "Qwen2.5-VL", ((bool(layers), problem, "at least one"),))

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> QwenVision:
        return QwenVision(checkpoint, placement)


class QwenVision(SplicedVision):
    """Vision half: patches -> merged tokens, D wide, with the K * D features of deepstack in `extra`."""

    reads_clips = True
    methods = {"prunesid-published": published_qwen}
    """Selection methods that this family replaces by another one: the published code differs by model."""

    def load_processor(self, checkpoint: Checkpoint) -> Any:
        """Load a processor for images and clips."""
        self.preprocessor = QwenPreprocessor(checkpoint, self.base.get_rope_index)
        return self.preprocessor.processor

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image or clip -> frames, and the grid of their patches [1, 3]."""
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

    def features(self, items: Sequence[Pixels]) -> tuple[Tensor, Tensor | None]:
        """Images and clips, in one pass through the tower. See `SplicedVision.features`."""
        grids = [item.tensors["video_grid_thw" if item.layout.is_clip else "image_grid_thw"] for item in items]
        grid = torch.cat(grids).to(self.placement.device)
        output = self.base.visual(upload_pixels(items, self.placement), grid_thw=grid)
        deepstack = getattr(output, "deepstack_features", None)
        return output.pooler_output, torch.cat([layer.detach() for layer in deepstack], -1) if deepstack else None
