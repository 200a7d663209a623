"""LLaVA-1.5: CLIP tower, two-layer projector, any causal language model. Cut before the projector.

Visual tokens are the hidden states of the tower that the projector reads (layer -2), 576 for CLIP-L/336; saliency is
the attention of CLS in that same layer. Layers of the tower above it are neither loaded nor run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.families.checkpoint import Checkpoint
from prunesid_cli.families.generation import Decoder
from prunesid_cli.families.loading import load_config, load_half, load_processor
from prunesid_cli.families.saliency import cls_attention
from prunesid_cli.types import Encoded, Placement, TokenSet


class Llava:
    """model_type `llava` with a CLIP tower and one feature layer."""

    def check(self, checkpoint: Checkpoint) -> None:
        config = load_config(checkpoint)
        tower = getattr(config.vision_config, "model_type", "none")
        if tower != "clip_vision_model":
            raise UnsupportedModel(
                f"{checkpoint.name} has a vision tower of type {tower!r}", hint="LLaVA is supported with a CLIP tower"
            )
        if not isinstance(config.vision_feature_layer, int):
            raise UnsupportedModel(
                f"{checkpoint.name} joins features of layers {config.vision_feature_layer}",
                hint="LLaVA is supported with a single vision_feature_layer",
            )

    def vision(self, checkpoint: Checkpoint, placement: Placement) -> LlavaVision:
        return LlavaVision(checkpoint, placement)

    def language(self, checkpoint: Checkpoint, placement: Placement) -> LlavaLanguage:
        return LlavaLanguage(checkpoint, placement)


def _layers_read(config: Any) -> int:
    """How many layers of the tower run before the features are read."""
    depth: int = config.vision_config.num_hidden_layers
    layer: int = config.vision_feature_layer
    return layer if layer >= 0 else depth + 1 + layer


class LlavaVision:
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = _layers_read(config)
        config.text_config.num_hidden_layers = 0
        config.text_config.vocab_size = 1
        config.text_config.pad_token_id = None  # an index beyond those of one word
        model = load_half(
            LlavaForConditionalGeneration, checkpoint, config, placement, resized=("embed_tokens", "lm_head")
        )
        self.placement = placement
        self.tower = model.model.vision_tower
        # By way of AutoProcessor, because AutoImageProcessor demands torchvision in transformers 5.17.
        self.processor = load_processor(AutoProcessor, checkpoint).image_processor
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.grid = (side, side)
        self.summary_is_stock = config.vision_feature_select_strategy == "full"
        self.total = side * side + self.summary_is_stock

    def preprocess(self, image: Image) -> Tensor:
        pixels: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    @torch.no_grad()
    def encode(self, pixels: Sequence[Tensor]) -> Encoded:
        batch = torch.stack(list(pixels)).to(self.placement.device, self.placement.dtype)
        encoder = getattr(self.tower, "vision_model", self.tower).encoder
        with cls_attention(encoder.layers[-1].self_attn) as rows:
            states = self.tower(batch).last_hidden_state
        return Encoded(states[:, 1:], states[:, 0], rows[0], self.summary_is_stock)


class LlavaLanguage:
    def __init__(self, checkpoint: Checkpoint, placement: Placement) -> None:
        config = load_config(checkpoint)
        config.vision_config.num_hidden_layers = 0
        model = load_half(LlavaForConditionalGeneration, checkpoint, config, placement)
        processor = load_processor(AutoProcessor, checkpoint)
        self.projector = model.model.multi_modal_projector
        self.image_token: int = config.image_token_id
        self.decoder = Decoder(model, processor)
        self.generate = self.decoder.generate

    def check(self, prompt: str) -> None:
        self.decoder.chat_ids(prompt, 1)

    @torch.no_grad()
    def embed(self, prompt: str, items: Sequence[TokenSet]) -> Tensor:
        ids = self.decoder.chat_ids(prompt, len(items))
        words = self.decoder.words(ids)
        pieces, start = [], 0
        for place, item in zip((ids == self.image_token).nonzero().flatten().tolist(), items, strict=True):
            visual = item.tokens.to(words.device, words.dtype)
            pieces += [words[start:place], self.projector(visual)]
            start = place + 1
        return torch.cat([*pieces, words[start:]])
