"""Gemma 3: SigLIP with square patches pooled 4 x 4, language model of five sliding layers and a full one.

Images have 448 pixels instead of 896: 1,024 patches and 64 tokens instead of 4,096 and 256.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from tests.models.tiny.base import TinyModel, save

SIDE, PATCH, POOL, WINDOW = 448, 14, 4, 40
NAMES = ("<pad>", "<bos>", "<eos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
IMAGE = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
NEWLINES = ("\n", "\n\n", "\n\n\n", "\n\n\n\n")
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<start_of_image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] | trim }}{% endif %}{% endfor %}"
    "{{ '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Runs of newlines are single tokens, as in the real vocabulary."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*NAMES, *IMAGE.values()]
    raw.train_from_iterator(
        ["what is shown? a red square and a blue circle"] * 4,
        trainers.BpeTrainer(vocab_size=360, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    raw.add_tokens([AddedToken(newline, normalized=False) for newline in NEWLINES])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), NAMES, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, padding_side="left", extra_special_tokens=IMAGE, chat_template=TEMPLATE, **names
    )


def gemma3(folder: Path, side: int = SIDE, pan_and_scan: bool | None = None) -> None:
    words = tokenizer()
    tokens = (side // PATCH // POOL) ** 2
    images = Gemma3ImageProcessorPil(
        size={"height": side, "width": side},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        do_pan_and_scan=pan_and_scan,
    )
    processor = Gemma3Processor(images, words, chat_template=TEMPLATE, image_seq_length=tokens)
    processor.save_pretrained(folder)
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Gemma3TextConfig(
        vocab_size=len(words),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    ids = {f"{name}_index": words.convert_tokens_to_ids(token) for name, token in IMAGE.items()}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=tokens, **ids)
    save(Gemma3ForConditionalGeneration, config, folder, seed=1)


def prune_inputs(inputs: dict[str, Any], kept: Tensor) -> dict[str, Any]:
    """Remove pruned rows and columns from the stock masks. Sliding layers count the kept tokens only."""
    full = inputs["attention_mask"]["full_attention"][:, :, kept][..., kept]
    place = torch.arange(len(kept))
    near = place[None] > place[:, None] - WINDOW
    sliding = full.masked_fill(~near, torch.finfo(full.dtype).min)
    return {
        "inputs_embeds": inputs["inputs_embeds"][:, kept],
        "attention_mask": {"full_attention": full, "sliding_attention": sliding},
        "use_cache": False,
    }


SIZES = ((448, 448), (500, 200), (90, 400), (20, 20))
PLAIN = TinyModel(gemma3, SIZES, prune_inputs=prune_inputs)
CROPS = TinyModel(
    partial(gemma3, pan_and_scan=True),
    ((1100, 300), (400, 400), (300, 800), (20, 20)),  # 4, 0, 3 and 0 crops
    prune_inputs=prune_inputs,
    processor_options={"do_pan_and_scan": True},
)
