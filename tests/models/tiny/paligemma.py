"""PaliGemma at 224 pixels with 256 tokens and Gemma; PaliGemma 2 with Gemma 2 (sliding layers, capped scores); and
images of more tokens than one window has."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, trainers
from torch import Tensor
from transformers import (
    Gemma2Config,
    GemmaConfig,
    GemmaTokenizer,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from tests.models.tiny.base import TinyModel, save

NAMES = ("<pad>", "<bos>", "<eos>", "<unk>", "<mask>")
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TWO_TEXT = {
    "num_key_value_heads": 2,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 2.0,  # of scores as small as these, 50 would cap nothing
    "final_logit_softcapping": None,  # transformers 5.17 leaves it out, and it changes no order
}


def tokenizer() -> GemmaTokenizer:
    """A tokenizer of the real class, which puts BOS first unless PaliGemma's processor forbids it."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*NAMES, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    raw.train_from_iterator(["what is shown? a red square and a blue circle. first and then"] * 4, trainer)
    model = json.loads(raw.to_str())["model"]
    return GemmaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def paligemma(folder: Path, side: int = 224, text: type = GemmaConfig, **named: Any) -> None:
    tokens = (side // 14) ** 2
    images = SiglipImageProcessorPil(
        size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3, image_seq_length=tokens
    )
    processor = PaliGemmaProcessor(images, tokenizer())
    processor.save_pretrained(folder)
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=side,
        patch_size=14,
        vision_use_head=False,
    )
    config = PaliGemmaConfig(
        vision_config=vision,
        text_config=text(vocab_size=len(processor.tokenizer), **TEXT, **named),
        image_token_index=processor.image_token_id,
        projection_dim=48,
        hidden_size=48,
    )
    save(PaliGemmaForConditionalGeneration, config, folder, seed=1)


def prune_inputs(inputs: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """Remove pruned rows and columns from the stock masks."""
    masks = inputs["attention_mask"]
    kept_masks = (
        {name: mask[:, :, kept][..., kept] for name, mask in masks.items()}
        if isinstance(masks, dict)
        else masks[:, :, kept][..., kept]
    )
    return {"inputs_embeds": inputs["inputs_embeds"][:, kept], "attention_mask": kept_masks, "use_cache": False}


PLAIN = TinyModel(partial(paligemma, num_key_value_heads=1), prune_inputs=prune_inputs)
TWO = TinyModel(partial(paligemma, text=Gemma2Config, **TWO_TEXT), prune_inputs=prune_inputs)
LARGE = TinyModel(
    partial(paligemma, side=560, num_key_value_heads=1), ((560, 560), (90, 400)), prune_inputs=prune_inputs
)
