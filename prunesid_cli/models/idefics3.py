"""Idefics3 and SmolVLM: SigLIP tower, connector (pixel shuffle and one linear layer), Llama. Cut after the connector.

Between the two parts of the connector a token is scale_factor squared times as wide as the tower, 4608 to 12288
numbers, and after it as wide as the language model, 576 to 4096. There is no CLS: saliency is the attention that a
patch gets in the last layer, summed over the patches that the shuffle makes one token of.

The stock model leaves out tiles that only fill up a batch. Here each picture comes alone, so there are none; and its
tiles are all of one size, so that nothing within them is padding either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
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

TAG = re.compile(r"<row_(\d+)_col_(\d+)>")
"""What the processors write before a tile; nothing of the kind before the whole picture."""


class Idefics3:
    """model_type `idefics3`: Idefics3 and the first SmolVLM, pictures only."""

    stock: Any = Idefics3ForConditionalGeneration

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """There are no variants."""

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> Idefics3Vision:
        return Idefics3Vision(self.stock, checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> Idefics3Language:
        return Idefics3Language(self.stock, checkpoint, placement)


class SmolVLM(Idefics3):
    """model_type `smolvlm`: SmolVLM2, clips, too."""

    stock = SmolVLMForConditionalGeneration


def _processor(checkpoint: Checkpoint) -> Any:
    """The checkpoint's processor.

    SmolVLM's cannot be made without a package that writes numbers in words, which it does for clips alone; of a picture
    Idefics3's makes the same. So do their image processors, which transformers 5.17 does not find without torchvision.
    """
    clips = checkpoint.model_type == "smolvlm" and is_num2words_available()
    processor = load_processor(checkpoint, None if clips else Idefics3Processor, Idefics3ImageProcessorPil)
    if not clips:
        return processor
    processor.video_processor = SimpleNamespace(num_frames=None, fps=None)  # which its chat template is offered
    return processor


def _check_clips(processor: Any, config: Any) -> None:
    """Refuse a clip where it cannot be written into a prompt."""
    if isinstance(processor, Idefics3Processor):
        if config.model_type == "smolvlm":
            raise ModelError("SmolVLM writes about a clip with a package that is missing", "pip install num2words")
        raise ModelError("Idefics3 takes pictures and no clips", hint="give single frames, or use SmolVLM2")


def _frame_options(checkpoint: Checkpoint, pictures: Any) -> dict[str, Any]:
    """`read_frame_options`; the size can stand under `video_sampling`, too, and only counts where there is no other."""
    sampling = load_video_settings(checkpoint).get("video_sampling") or {}
    return ({"size": sampling["video_size"]} if "video_size" in sampling else {}) | read_frame_options(checkpoint, pictures)


class Idefics3Vision:
    def __init__(self, stock: Any, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        self.placeholder_ids = placeholder_ids(config)
        self.placement = placement
        self.model = load_vision_model(stock, checkpoint, config, placement)
        self.processor = _processor(checkpoint)
        self.frame_options = _frame_options(checkpoint, self.processor.image_processor)

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        if media.is_clip:
            return self._clip(media)
        read = process_image(self.processor, self.placeholder_ids, media.image)
        places = [(int(row), int(column)) for row, column in TAG.findall(read.text)]
        layout = Layout(read.text, read.runs, tile_regions(read.runs[0], *max(places, default=(1, 1))))
        return Pixels({"pixel_values": read.tensors["pixel_values"][0]}, layout)

    def _clip(self, media: Media) -> Pixels:
        _check_clips(self.processor, self.model.config)
        pixels = preprocess_frames(self.processor, media.frames, do_image_splitting=False, **self.frame_options)
        about = SimpleNamespace(fps=1.0, timestamps=media.times, duration=None)
        written = self.processor.replace_video_token({"pixel_values": pixels, "video_metadata": [about]}, 0)
        text, runs = collapse_text(self.processor, self.placeholder_ids, written)
        return Pixels({"pixel_values": pixels[0]}, Layout(text, runs, frame_regions(runs[0], media.times)))

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        batch = torch.cat([item.tensors["pixel_values"] for item in items])
        batch = batch.to(self.placement.device, self.placement.dtype)
        tower, connector = self.model.model.vision_model, self.model.model.connector
        with record_received_attention(tower.encoder.layers[-1].self_attn) as found:
            states = tower(batch).last_hidden_state
        saliency = connector.pixel_shuffle(found[0][..., None], connector.scale_factor).sum(-1)
        return split_by_item(connector(states), saliency, items)


class Idefics3Language(BaseLanguageHalf):
    def __init__(self, stock: Any, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        super().__init__(load_model_half(stock, checkpoint, config, placement), _processor(checkpoint))

    def project(self, tokens: Tensor) -> Tensor:
        return tokens

    def render_chat(self, conversation: list[dict[str, Any]]) -> str:
        if any(part["type"] == "video" for turn in conversation for part in turn["content"]):
            _check_clips(self.processor, self.model.config)
        return super().render_chat(conversation)
