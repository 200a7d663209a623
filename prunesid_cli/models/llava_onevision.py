"""LLaVA-OneVision.

Checkpoints: llava-hf/llava-onevision-qwen2-*-ov-hf and others of model_type `llava_onevision`.
Vision tower: SigLIP, the features of vision_feature_layer. An image is seen whole and as a grid of tiles.
Cut: after projector and packing. Shrinking and pooling mix projected tokens, so what the language model reads exists
    only after them. A cut before the projector would be exact for images that are not shrunk (1152 wide; after it 896
    in the 0.5B model, 3584 in the 7B one), but then a cache would hold tokens of two kinds, whose information cannot be
    compared.
Layout: the whole image, then the rows of the grid, padding cut off, shrunk to about nine tiles, a newline after each
    row. Of a clip, the frames one after the other, pooled by 2, and one newline.
Saliency: attention that a patch receives in the layer that is read, packed or pooled like the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.frame_preprocessor import FramePreprocessor
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import split_scale, upload_pixels
from prunesid_cli.models.shared.processor import load_frame_processor, load_processor, placeholder_text
from prunesid_cli.models.shared.registered_attention import record_attention
from prunesid_cli.models.shared.requirements import check_requirements
from prunesid_cli.models.shared.token_grid import with_grid_box
from prunesid_cli.models.shared.vision_tower import tower_type, trim_tower
from prunesid_cli.models.shared.window_segments import window_segments
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Region

IMAGE_PIXELS, CLIP_PIXELS = "pixel_values", "pixel_values_videos"
"""Names of the pixels, as in the arguments of the stock model."""
MAX_TOWER_BATCH = 64
"""Tiles and frames in one pass of the tower, so that its memory does not grow with their number."""


class LlavaOnevision:
    """Family of model_type `llava_onevision`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse towers other than SigLIP, several feature layers, and features that leave out a patch."""
        config = load_config(checkpoint)
        tower, layer, strategy = tower_type(config), config.vision_feature_layer, config.vision_feature_select_strategy
        requirements = (
            (tower == "siglip_vision_model", f"has a vision tower of type {tower!r}", "a SigLIP tower"),
            (isinstance(layer, int), f"has features of layers {layer} joined", "a single vision_feature_layer"),
            (strategy == "full", f"has vision_feature_select_strategy {strategy!r}", "the strategy 'full'"),
        )
        check_requirements(checkpoint, "LLaVA-OneVision", requirements)

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaOnevisionVision:
        return LlavaOnevisionVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LlavaOnevisionLanguage:
        return LlavaOnevisionLanguage(checkpoint, placement)


class LlavaOnevisionVision:
    """Vision half: tiles or frames -> packed or pooled tokens, D wide."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        trim_tower(config)
        self.placement = placement
        self.model = load_vision_model(LlavaOnevisionForConditionalGeneration, checkpoint, config, placement)
        self.tower = getattr(self.model.model.vision_tower, "vision_model", self.model.model.vision_tower)
        self.processor = load_processor(checkpoint)
        self.scale, self.options = split_scale(self.processor.image_processor)
        self.frames = FramePreprocessor(load_frame_processor(checkpoint, self.processor.image_processor))
        self.aspect_ratio = config.vision_aspect_ratio
        self.side = config.vision_config.image_size // config.vision_config.patch_size

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> whole image and tiles [T, 3, H, W] and its size [1, 2]; clip -> frames [T, 3, H, W].

        An image with other images in its prompt is not tiled.
        """
        if media.is_clip:
            return Pixels({CLIP_PIXELS: self.frames(media.frames)}, self._clip_layout(media.times), self.frames.scale)
        # The processor tiles an image unless it gets a list of several for the same prompt.
        images = [[media.image, Image.new("RGB", (1, 1))]] if num_other_images else [media.image]
        processed = self.processor.image_processor(images=images, return_tensors="pt", **self.options)
        tiles, image_sizes = processed[IMAGE_PIXELS][0], processed["image_sizes"][:1]
        layout = self._image_layout(len(tiles), image_sizes, media.size)
        return Pixels({IMAGE_PIXELS: tiles, "image_sizes": image_sizes}, layout, self.scale)

    def _clip_layout(self, times: Sequence[float]) -> Layout:
        side = (self.side + 1) // 2
        regions = tuple(Region(number * side**2, side, side, side, time=time) for number, time in enumerate(times))
        return Layout(placeholder_text(self.processor, True) or "", (len(times) * side**2 + 1,), regions)

    def _image_layout(self, num_tiles: int, image_sizes: Tensor, size: tuple[int, int]) -> Layout:
        """Layout of an image, from the stock model's packing of zeros with newlines of 1.

        Of the grid of a very narrow image nothing but newlines may be left.
        """
        packed = self._pack(torch.zeros(num_tiles, self.side**2, 1), image_sizes, torch.ones(1))
        regions, num_newlines = [Region(0, self.side, self.side, self.side)], int(packed.sum())
        columns = (len(packed) - self.side**2) // num_newlines - 1 if num_newlines else 0
        if columns:
            regions.append(Region(self.side**2, num_newlines, columns, columns + 1))
        boxed_regions = with_grid_box(regions, size, self.model.config.image_grid_pinpoints)
        return Layout(placeholder_text(self.processor, False) or "", (len(packed),), boxed_regions)

    def _pack(self, tiles: Tensor, image_sizes: Tensor, newline: Tensor | None = None) -> Tensor:
        """Tokens of the whole image and its tiles [T, N, C] -> what the language model reads [total, C]."""
        packed, _ = self.model.model.pack_image_features(
            [tiles], image_sizes, image_newline=newline, vision_aspect_ratio=self.aspect_ratio
        )
        return packed[0]

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images and clips -> a segment for each window of at most a tile."""
        counts = [len(item.tensors[CLIP_PIXELS if item.layout.is_clip else IMAGE_PIXELS]) for item in items]
        outputs = self._run_tower(upload_pixels(items, self.placement))
        features, saliency = (output.split(counts) for output in outputs)
        encoded = []
        for number, item in enumerate(items):
            outputs = (features[number], saliency[number])  # [T, N, D] and [T, N, 1]
            if item.layout.is_clip:
                tokens, weights = (self.model.model.apply_pooling(output).flatten(0, 1) for output in outputs)
            else:
                tokens, weights = (self._pack(output, item.tensors["image_sizes"]) for output in outputs)
            sizes = [region.rows * region.columns for region in item.layout.regions]
            segments = []
            for region, region_tokens, region_weights in zip(
                item.layout.regions, tokens.split(sizes), weights.split(sizes), strict=True
            ):
                segments += window_segments(region, self.side, region_tokens, region_weights[:, 0])
            encoded.append(Encoded(tuple(segments), item.layout))
        return encoded

    def _run_tower(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles and frames [S, 3, H, W] -> projected tokens [S, N, D] and their saliency [S, N, 1]."""
        states = []
        with record_attention([self.tower.encoder.layers[-1].self_attn]) as calls:
            for batch in pixels.split(MAX_TOWER_BATCH):
                states.append(self.tower.encoder(inputs_embeds=self.tower.embeddings(batch)).last_hidden_state)
        saliency = torch.cat([call.received() for call in calls])
        return self.model.model.multi_modal_projector(torch.cat(states)), saliency[..., None]


class LlavaOnevisionLanguage(BaseLanguageHalf):
    """Language half: Qwen2."""

    list_modalities = ("image",)

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        trim_tower(config)
        config.vision_config.num_hidden_layers = 0
        model = load_model_half(LlavaOnevisionForConditionalGeneration, checkpoint, config, placement)
        super().__init__(model, load_processor(checkpoint))
        self.newline_embedding = self.model.model.image_newline
