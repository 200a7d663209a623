"""Idefics3 and SmolVLM.

Checkpoints: HuggingFaceM4/Idefics3-8B-Llama3, HuggingFaceTB/SmolVLM-* and SmolVLM2-*; clips with SmolVLM2 alone.
Vision tower: SigLIP; a connector of a pixel shuffle and one linear layer.
Cut: after the connector, where a token is as wide as the language model, 576 to 4096. Between its two parts a token is
    scale_factor squared times as wide as the tower, 4608 to 12288 numbers.
Layout: tiles in raster order, then the whole image; each is a run of its own, with text before it. The stock model
    leaves out tiles that only fill up a batch. Here each image is processed alone, so there are none; and the tiles of
    an image have one size, so there is no padding within them either.
Saliency: there is no CLS; it is the attention that a patch receives in the last layer, summed over the patches that the
    shuffle makes one token of.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Idefics3ForConditionalGeneration, SmolVLMForConditionalGeneration
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.utils import is_num2words_available

from prunesid_cli.errors import ModelError
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.attention_saliency import record_received_attention
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import split_scale, upload_pixels
from prunesid_cli.models.shared.processor import (
    collapse_text,
    load_processor,
    load_video_settings,
    placeholder_ids,
    preprocess_frames,
    process_image,
    read_frame_options,
)
from prunesid_cli.models.shared.token_grid import frame_regions, split_by_item, tile_regions
from prunesid_cli.types import Encoded, Layout, Pixels, Placement

TILE_TEXT = re.compile(r"<row_(\d+)_col_(\d+)>")
"""Text that the processors write before a tile, counted from 1. They write another text before the whole image."""


class Idefics3:
    """Family of model_type `idefics3`: Idefics3 and the first SmolVLM, images only."""

    model_class: Any = Idefics3ForConditionalGeneration

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """There are no variants to refuse."""

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> Idefics3Vision:
        return Idefics3Vision(self.model_class, checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> Idefics3Language:
        return Idefics3Language(self.model_class, checkpoint, placement)


class SmolVLM(Idefics3):
    """Family of model_type `smolvlm`: SmolVLM2, images and clips."""

    model_class = SmolVLMForConditionalGeneration


def load_smolvlm_processor(checkpoint: Checkpoint) -> Any:
    """Load the checkpoint's processor.

    SmolVLM's cannot be built without num2words, which it needs for clips alone; for images Idefics3's does the same. So
    do their image processors; transformers 5.17 does not find SmolVLM's without torchvision.
    """
    if checkpoint.model_type != "smolvlm" or not is_num2words_available():
        return load_processor(checkpoint, Idefics3Processor, Idefics3ImageProcessorPil)
    processor = load_processor(checkpoint, None, Idefics3ImageProcessorPil)
    processor.video_processor = SimpleNamespace(num_frames=None, fps=None)  # its chat template takes these
    return processor


def check_clips_supported(processor: Any, config: Any) -> None:
    """Refuse a clip if the processor cannot write it into a prompt.

    Raises:
        ModelError: The model reads images only, or num2words is missing.
    """
    if isinstance(processor, Idefics3Processor):
        if config.model_type == "smolvlm":
            raise ModelError("SmolVLM writes about a clip with a package that is missing", "pip install num2words")
        raise ModelError("Idefics3 takes images and no clips", hint="give single frames, or use SmolVLM2")


class Idefics3Vision:
    """Vision half: tiles or frames -> tokens of the connector, D wide."""

    def __init__(self, model_class: Any, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        self.placeholder_ids = placeholder_ids(config)
        self.placement = placement
        self.model = load_vision_model(model_class, checkpoint, config, placement)
        self.processor = load_smolvlm_processor(checkpoint)
        images = self.processor.image_processor
        self.scale, self.options = split_scale(images)
        frame_options = {"do_image_splitting": False, **read_frame_options(checkpoint, images)}
        # The frame size can also be in `video_sampling`, where it only counts if there is no other.
        sampling = load_video_settings(checkpoint).get("video_sampling") or {}
        if "video_size" in sampling:
            frame_options = {"size": sampling["video_size"]} | frame_options
        self.frame_scale, self.frame_options = split_scale(images, **frame_options)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> tiles and the whole image, clip -> frames: [S, 3, H, W]."""
        if media.is_clip:
            return self._preprocess_clip(media)
        processed = process_image(self.processor, self.placeholder_ids, media.image, **self.options)
        tiles = [(int(row), int(column)) for row, column in TILE_TEXT.findall(processed.text)]
        rows, columns = max(tiles, default=(1, 1))
        layout = Layout(processed.text, processed.runs, tile_regions(processed.runs[0], rows, columns))
        return Pixels({"pixel_values": processed.tensors["pixel_values"][0]}, layout, self.scale)

    def _preprocess_clip(self, media: Media) -> Pixels:
        check_clips_supported(self.processor, self.model.config)
        pixels = preprocess_frames(self.processor.image_processor, media.frames, **self.frame_options)
        metadata = SimpleNamespace(fps=1.0, timestamps=media.times, duration=None)
        written = self.processor.replace_video_token({"pixel_values": pixels[None], "video_metadata": [metadata]}, 0)
        text, runs = collapse_text(self.processor, self.placeholder_ids, written)
        layout = Layout(text, runs, frame_regions(runs[0], media.times))
        return Pixels({"pixel_values": pixels}, layout, self.frame_scale)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images and clips -> a segment for each tile, whole image and frame."""
        tower, connector = self.model.model.vision_model, self.model.model.connector
        with record_received_attention(tower.encoder.layers[-1].self_attn) as attention:
            states = tower(upload_pixels(items, self.placement)).last_hidden_state
        saliency = connector.pixel_shuffle(attention[0][..., None], connector.scale_factor).sum(-1)
        return split_by_item(connector(states), saliency, items)


class Idefics3Language(BaseLanguageHalf):
    """Language half: Llama."""

    item_tokens = (TILE_TEXT.pattern,)
    list_modalities = ()

    def __init__(self, model_class: Any, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        model = load_model_half(model_class, checkpoint, config, placement)
        super().__init__(model, load_smolvlm_processor(checkpoint))

    def render_chat(self, conversation: list[dict[str, Any]]) -> str:
        """Refuse clips that the processor cannot write, as `preprocess` does: tokens may come from a cache."""
        if any(part["type"] == "video" for turn in conversation for part in turn["content"]):
            check_clips_supported(self.processor, self.model.config)
        return super().render_chat(conversation)
