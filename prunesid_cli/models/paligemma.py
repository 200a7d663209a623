"""PaliGemma and PaliGemma 2.

Checkpoints: google/paligemma-3b-*, google/paligemma2-*. Most were trained on one image in a prompt; several stand where
    the stock processor puts them. There is no chat template: a prompt is `<image><bos>question\\n`.
Vision tower: SigLIP at 224, 448 or 896 pixels, including its last norm; Gemma or Gemma 2.
Cut: before the linear projector, where a token is as wide as the tower.
Layout: one raster of 256, 1,024 or 4,096 tokens. The whole prompt attends to itself in both directions.
Saliency: attention that a patch receives in the tower's last layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration

from prunesid_cli.errors import ModelError
from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half, load_vision_model
from prunesid_cli.models.shared.frame_preprocessor import FramePreprocessor
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.pixel_scale import upload_pixels
from prunesid_cli.models.shared.processor import (
    load_processor,
    placeholder_text,
    resized_short_side,
)
from prunesid_cli.models.shared.registered_attention import record_attention
from prunesid_cli.models.shared.requirements import check_requirements, refuse_flash_attention
from prunesid_cli.models.shared.vision_tower import tower_type
from prunesid_cli.models.shared.window_segments import window_segments
from prunesid_cli.types import Encoded, Layout, Pixels, Placement, Prompt, Region

WINDOW_SIDE = 32
"""A segment of a raster, which has up to 64 x 64 tokens, has at most this many tokens squared."""


class PaliGemma:
    """Family of model_type `paligemma`."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Refuse towers other than SigLIP."""
        tower = tower_type(load_config(checkpoint))
        problem = f"has a vision tower of type {tower!r}"
        check_requirements(checkpoint, "PaliGemma", ((tower == "siglip_vision_model", problem, "SigLIP"),))

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> PaliGemmaVision:
        return PaliGemmaVision(checkpoint, placement)

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> PaliGemmaLanguage:
        return PaliGemmaLanguage(checkpoint, placement)


class PaliGemmaVision:
    """Vision half: an image, resized to one size -> outputs of the tower, C wide."""

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        refuse_flash_attention(placement, "PaliGemma")
        config = load_config(checkpoint)
        self.placement = placement
        self.model = load_vision_model(PaliGemmaForConditionalGeneration, checkpoint, config, placement)
        self.tower = self.model.model.vision_tower
        self.processor = load_processor(checkpoint)
        self.fixed_short_side = resized_short_side(self.processor.image_processor)
        self.preprocessor = FramePreprocessor(self.processor.image_processor)
        side = config.vision_config.image_size // config.vision_config.patch_size
        text = str(placeholder_text(self.processor, False))
        self.layout = Layout(text, (side**2,), (Region(0, side, side, side),))

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Image -> pixels [1, 3, H, W]."""
        return Pixels({"pixel_values": self.preprocessor(media.frames)}, self.layout, self.preprocessor.scale)

    @torch.no_grad()
    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Images -> a segment for each window of the raster."""
        encoder = getattr(self.tower, "vision_model", self.tower).encoder
        with record_attention([encoder.layers[-1].self_attn]) as calls:
            states = self.tower(pixel_values=upload_pixels(items, self.placement)).last_hidden_state
        encoded = []
        for features, saliency, item in zip(states, calls[0].received(), items, strict=True):
            segments = window_segments(item.layout.regions[0], WINDOW_SIDE, features, saliency)
            encoded.append(Encoded(tuple(segments), item.layout))
        return encoded


class PaliGemmaLanguage(BaseLanguageHalf):
    """Language half: projector and Gemma, in which a prompt attends to itself in both directions."""

    is_causal = False  # visual tokens attend to the question that comes after them
    list_modalities = ()

    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        refuse_flash_attention(placement, "PaliGemma")
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        model = load_model_half(PaliGemmaForConditionalGeneration, checkpoint, config, placement)
        super().__init__(model, load_processor(checkpoint))

    def project(self, tokens: Tensor) -> Tensor:
        """[T, C] -> [T, D]."""
        embeds: Tensor = self.model.model.multi_modal_projector(tokens)
        return embeds

    def model_inputs(self, prompts: Sequence[Prompt], num_cached: int = 0) -> dict[str, Any]:
        """Set the types of the tokens: 0 for all of a prompt, so that it attends to itself."""
        inputs = super().model_inputs(prompts, num_cached)
        return inputs | {"token_type_ids": torch.zeros_like(inputs["attention_mask"])}

    def render_chat(self, conversation: list[dict[str, Any]]) -> str:
        """Concatenate a prompt, as there is no chat template: placeholders and texts in their order."""
        if conversation[0]["role"] == "system":
            raise ModelError("PaliGemma reads no system prompt", "say it in the prompt")
        placeholder = str(self.placeholder_texts[False])
        return "".join(part.get("text", placeholder) for turn in conversation for part in turn["content"])

    def tokenize_text(self, text: str) -> Tensor:
        """Tokenize a prompt as the stock processor does, with BOS after the last image and a newline at the end."""
        images, placeholder, question = text.rpartition(str(self.placeholder_texts[False]))
        return super().tokenize_text(f"{images}{placeholder}{self.tokenizer.bos_token}{question}\n")
