"""PaliGemma and PaliGemma 2: SigLIP at 224, 448 or 896 pixels (256, 1,024 or 4,096 tokens), a linear projector, Gemma
(1 or 2). Cut before the projector.

Visual tokens are what the whole tower puts out, its last norm included; saliency is the attention that patches receive
in its last layer. There is no chat template: the prompt is `<image><bos>question\\n`, and all of it sees itself in both
directions. Most were taught one picture a prompt; several stand where the stock processor puts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.attention_saliency import record_received_attention
from prunesid_cli.models.shared.prefix_lm import BidirectionalLanguageHalf, refuse_flash_attention
from prunesid_cli.models.shared.processor import load_processor, placeholder_text, preprocess_frames, resized_short_side
from prunesid_cli.models.shared.token_grid import window_slices
from prunesid_cli.models.shared.vision_tower import tower_type
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Prompt, Region, Segment

WINDOW = 32
"""Rasters, of up to 64 x 64 tokens, are cut into segments of at most this many rows and columns."""


class PaliGemma:
    """model_type `paligemma`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        kind = tower_type(load_config(checkpoint))
        if kind != "siglip_vision_model":
            raise UnsupportedModel(
                f"{checkpoint.name} has a vision tower of type {kind!r}", hint="PaliGemma is supported with SigLIP"
            )

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> PaliGemmaVision:
        return PaliGemmaVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> PaliGemmaLanguage:
        return PaliGemmaLanguage(checkpoint, placement)


def _capping(config: Any, placement: Placement) -> Placement:
    """Gemma 2 caps attention scores, which SDPA leaves out in transformers 5.17 and refuses to do in later ones."""
    return replace(placement, attention="eager") if config.text_config.model_type == "gemma2" else placement


class PaliGemmaVision:
    """Pictures of one size."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        refuse_flash_attention(placement, "PaliGemma")
        config = load_config(checkpoint)
        self.placement = placement
        self.model = load_vision_model(PaliGemmaForConditionalGeneration, checkpoint, config, _capping(config, placement))
        self.tower = self.model.model.vision_tower
        self.tower.set_attn_implementation(placement.attention)
        self.processor = load_processor(checkpoint)
        self.fixed_short_side = resized_short_side(self.processor.image_processor)
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.layout = Layout(str(placeholder_text(self.processor, False)), (side**2,), (Region(0, side, side, side),))
        raster = torch.arange(side**2).view(side, side)
        self.parts = [raster[window].flatten() for window in window_slices(side, side, WINDOW)]

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        return Pixels({"pixel_values": preprocess_frames(self.processor, [media.image])}, self.layout)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        batch = torch.cat([item.tensors["pixel_values"] for item in items])
        batch = batch.to(self.placement.device, self.placement.dtype)
        encoder = getattr(self.tower, "vision_model", self.tower).encoder
        with record_received_attention(encoder.layers[-1].self_attn) as rows:
            states = self.tower(pixel_values=batch).last_hidden_state
        return [
            Encoded(
                tuple(Segment(one[part], saliency[part], slots=tuple(part.tolist())) for part in self.parts),
                item.layout,
            )
            for one, saliency, item in zip(states, rows[0], items, strict=True)
        ]


class PaliGemmaLanguage(BidirectionalLanguageHalf):
    is_causal = False  # visual tokens see the question that comes after them

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        refuse_flash_attention(placement, "PaliGemma")
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        placement = _capping(config, placement)
        super().__init__(
            load_model_half(PaliGemmaForConditionalGeneration, checkpoint, config, placement), load_processor(checkpoint)
        )

    def project(self, tokens: Tensor) -> Tensor:
        embeds: Tensor = self.model.model.multi_modal_projector(tokens)
        return embeds

    def model_inputs(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """With the types of the tokens: 0 for a prompt, which sees all of itself."""
        given = super().model_inputs(prompts)
        return given | {"token_type_ids": torch.zeros_like(given["attention_mask"])}

    def render_chat(self, conversation: list[dict[str, Any]]) -> str:
        """What the stock processor is given, which takes a turn as it is."""
        word = str(self.placeholder_texts[False])
        return "".join(part.get("text", word) for turn in conversation for part in turn["content"])

    def tokenize_text(self, text: str) -> Tensor:
        """What the stock processor makes of that: BOS after the last picture, a newline at the end."""
        word = str(self.placeholder_texts[False])
        pictures, word, question = text.rpartition(word)
        return super().tokenize_text(f"{pictures}{word}{self.tokenizer.bos_token}{question}\n")
