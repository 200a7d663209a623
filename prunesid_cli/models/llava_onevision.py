"""LLaVA-OneVision: SigLIP tower, tiles of a large picture, pooled frames of a clip. Cut after projector and packing.

A picture is read twice: whole, and as a raster of tiles from which padding is cut and which is then shrunk to about
nine tiles. Shrinking and pooling mix projected tokens, so what the language model reads exists after them alone. A cut
before the projector would be exact for pictures that are not shrunk (1152 wide; after it 896 in the 0.5B model, 3584 in
the 7B one), but then a collection would hold tokens of two kinds, whose information cannot be compared.

Saliency is what a token receives in the layer that is read, put through the same packing or pooling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.attention_saliency import record_received_attention
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.processor import load_frame_processor, load_processor, placeholder_text
from prunesid_cli.models.shared.token_grid import window_slices, with_grid_box
from prunesid_cli.models.shared.vision_tower import trim_tower
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Region, Segment

PICTURE, CLIP = "pixel_values", "pixel_values_videos"
AT_ONCE = 64
"""Tiles and frames in one pass of the tower, so that its memory does not grow with their number."""
ANOTHER = Image.new("RGB", (1, 1))


class LlavaOnevision:
    """model_type `llava_onevision` with a SigLIP tower and one feature layer, read in full."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        config = load_config(checkpoint)
        tower = getattr(config.vision_config, "model_type", "none")
        layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
        known = (
            (tower == "siglip_vision_model", f"a vision tower of type {tower!r}", "a SigLIP tower"),
            (isinstance(layer, int), f"features of layers {layer} joined", "a single vision_feature_layer"),
            (strategy == "full", f"vision_feature_select_strategy {strategy!r}", "the strategy 'full'"),
        )
        for is_known, what, supported in known:
            if not is_known:
                raise UnsupportedModel(
                    f"{checkpoint.name} has {what}", f"LLaVA-OneVision is supported with {supported}"
                )

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaOnevisionVision:
        return LlavaOnevisionVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaOnevisionLanguage:
        return LlavaOnevisionLanguage(checkpoint, placement)


class LlavaOnevisionVision:
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = _headless(checkpoint)
        trim_tower(config)
        self.placement = placement
        self.model = load_vision_model(LlavaOnevisionForConditionalGeneration, checkpoint, config, placement)
        self.tower = getattr(self.model.model.vision_tower, "vision_model", self.model.model.vision_tower)
        self.processor = load_processor(checkpoint)
        self.frames = load_frame_processor(checkpoint, self.processor.image_processor)
        self.aspect_ratio = config.vision_aspect_ratio
        self.side = config.vision_config.image_size // config.vision_config.patch_size

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """A picture with others in its prompt is not tiled."""
        if media.is_clip:
            frames = self.frames(images=list(media.frames), return_tensors="pt")["pixel_values"]
            return Pixels({CLIP: frames}, self._layout_of_clip(media.times))
        together = [[media.image, ANOTHER]] if num_other_images else [media.image]
        made = self.processor.image_processor(images=together, return_tensors="pt")
        tiles, sizes = made[PICTURE][0], made["image_sizes"][:1]
        layout = self._layout_of_picture(len(tiles), sizes)
        regions = with_grid_box(layout.regions, media.size, self.model.config.image_grid_pinpoints)
        return Pixels({PICTURE: tiles, "image_sizes": sizes}, replace(layout, regions=regions))

    def _layout_of_clip(self, times: Sequence[float]) -> Layout:
        side = (self.side + 1) // 2
        regions = tuple(Region(i * side**2, side, side, side, time=time) for i, time in enumerate(times))
        return Layout(placeholder_text(self.processor, True) or "", (len(times) * side**2 + 1,), regions)

    def _layout_of_picture(self, tiles: int, sizes: Tensor) -> Layout:
        """The model's own packer, on zeros with newlines of 1, tells how many rows there are. Of the raster of a very
        narrow picture nothing but newlines may be left."""
        packed = self._packed(torch.zeros(tiles, self.side**2, 1), sizes, torch.ones(1))
        regions, newlines = [Region(0, self.side, self.side, self.side)], int(packed.sum())
        columns = (len(packed) - self.side**2) // newlines - 1 if newlines else 0
        if columns:
            regions.append(Region(self.side**2, newlines, columns, columns + 1))
        return Layout(placeholder_text(self.processor, False) or "", (len(packed),), tuple(regions))

    def _packed(self, tiles: Tensor, sizes: Tensor, newline: Tensor | None = None) -> Tensor:
        """Tokens of a picture and its tiles [1 + tiles, N, C] -> as the language model reads them [total, C]."""
        packed, _ = self.model.model.pack_image_features(
            [tiles], sizes, image_newline=newline, vision_aspect_ratio=self.aspect_ratio
        )
        return packed[0]

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        pixels = [item.tensors[CLIP if CLIP in item.tensors else PICTURE] for item in items]
        counts = [len(one) for one in pixels]
        features, saliency = (made.split(counts) for made in self._seen(torch.cat(pixels)))
        return [self._encoded(*one) for one in zip(items, features, saliency, strict=True)]

    def _seen(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles and frames [P, 3, H, W] -> projected tokens [P, N, D] and their saliency [P, N, 1]."""
        pixels = pixels.to(self.placement.device, self.placement.dtype)
        with record_received_attention(self.tower.encoder.layers[-1].self_attn) as received:
            states = [
                self.tower.encoder(inputs_embeds=self.tower.embeddings(some)).last_hidden_state
                for some in pixels.split(AT_ONCE)
            ]
        return self.model.model.multi_modal_projector(torch.cat(states)), torch.cat(received)[..., None]

    def _encoded(self, item: Pixels, features: Tensor, saliency: Tensor) -> Encoded:
        both = [features, saliency]
        if CLIP in item.tensors:
            tokens, weights = (self.model.model.apply_pooling(one).flatten(0, 1) for one in both)
        else:
            tokens, weights = (self._packed(one, item.tensors["image_sizes"]) for one in both)
        sizes = [region.rows * region.columns for region in item.layout.regions]
        segments = [
            segment
            for region, own, mine in zip(item.layout.regions, tokens.split(sizes), weights.split(sizes), strict=True)
            for segment in self._segments(region, own, mine[:, 0])
        ]
        return Encoded(tuple(segments), item.layout)

    def _segments(self, region: Region, *parts: Tensor) -> list[Segment]:
        """Tokens and saliency of a raster, in windows of at most a tile."""
        shape = (region.rows, region.columns)
        rasters = [part.unflatten(0, shape) for part in (*parts, torch.tensor(region.slots))]
        cut = [[raster[window].flatten(0, 1) for raster in rasters] for window in window_slices(*shape, self.side)]
        return [Segment(tokens, saliency, slots=tuple(slots.tolist())) for tokens, saliency, slots in cut]


class LlavaOnevisionLanguage(BaseLanguageHalf):
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = _headless(checkpoint)
        config.vision_config.num_hidden_layers = 0
        model = load_model_half(LlavaOnevisionForConditionalGeneration, checkpoint, config, placement)
        super().__init__(model, load_processor(checkpoint))
        self.newline_embedding = model.model.image_newline

    def project(self, tokens: Tensor) -> Tensor:
        return tokens


def _headless(checkpoint: Checkpoint) -> Any:
    """The configuration without the tower's pooling head, which is not read."""
    config = load_config(checkpoint)
    config.vision_config.vision_use_head = False
    return config
