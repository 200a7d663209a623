"""Qwen2-VL (14 pixels a patch), Qwen2.5-VL (windows of 112 pixels), Qwen3-VL (16 pixels, deepstack): M-RoPE, 2 x 2
patches a token, images of any size within the limits of the real checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from prunesid_cli.types import Pixels
from tests.models.tiny.base import TinyModel, save, tower_pixels

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
IDS = {
    "image_token_id": SPECIAL.index("<|image_pad|>"),
    "video_token_id": SPECIAL.index("<|video_pad|>"),
    "vision_start_token_id": SPECIAL.index("<|vision_start|>"),
    "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
}
SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{% endif %}"
)
TURNS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
MERGED = {"temporal_patch_size": 2, "merge_size": 2}
PATCH_14 = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    **MERGED,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "image_processor_type": "Qwen2VLImageProcessor",
}
PATCH_16 = {"patch_size": 16, **MERGED, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGES_16 = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    **PATCH_16,
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
CLIPS_16 = {
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    **PATCH_16,
    "video_processor_type": "Qwen3VLVideoProcessor",
}
SIZES = ((336, 336), (500, 200), (90, 400), (640, 56), (20, 11))


def _text(vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 2,
        **more,
    }


def _write(folder: Path, kind: str, template: str, files: Mapping[str, Any]) -> int:
    """The tokenizer and the files of the processor; returns the size of the vocabulary."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    corpus = ["user\nwhat is shown? assistant\na red square, first and then a blue circle <0.2 seconds>"] * 4
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(corpus, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL[1:2] + SPECIAL[3:]),
        padding_side="left",
    )
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    for name, settings in files.items():
        (folder / name).write_text(json.dumps({**settings, "processor_class": kind}))
    return len(tokenizer)


def qwen2_vl(folder: Path) -> None:
    words = _write(folder, "Qwen2VLProcessor", SYSTEM + TURNS, {"preprocessor_config.json": PATCH_14})
    vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "num_heads": 2, "patch_size": 14}
    text = _text(words, rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6})
    save(Qwen2VLForConditionalGeneration, Qwen2VLConfig(vision_config=vision, text_config=text, **IDS), folder, seed=1)


def qwen2_5_vl(folder: Path) -> None:
    words = _write(folder, "Qwen2_5_VLProcessor", SYSTEM + TURNS, {"preprocessor_config.json": PATCH_14})
    vision = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "fullatt_block_indexes": [1, 2],
        "tokens_per_second": 2,
    }
    text = _text(words, rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6})
    save(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(vision_config=vision, text_config=text, **IDS), folder)


def qwen3(folder: Path, name: str = "Qwen3VL", rope: Mapping[str, Any] | None = None, **more: Any) -> None:
    """Qwen3-VL and Qwen3.5; the latter has no deepstack, and a language model with layers of linear attention."""
    files = {"preprocessor_config.json": IMAGES_16, "video_preprocessor_config.json": CLIPS_16}
    words = _write(folder, "Qwen3VLProcessor", TURNS, files)
    vision: dict[str, Any] = {
        "depth": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 64,
        "num_position_embeddings": 2304,
    }
    if "VL" in name:
        vision["deepstack_visual_indexes"] = [0, 1, 2]
    positions = {"rope_type": "default", "mrope_section": [3, 3, 2], "mrope_interleaved": True, "rope_theta": 5e6}
    text = _text(words, head_dim=16, rope_parameters={**positions, **(rope or {})}, **more)
    config = getattr(transformers, f"{name}Config")(vision_config=vision, text_config=text, **IDS)
    save(getattr(transformers, f"{name}ForConditionalGeneration"), config, folder)


def as_clip(pixels: Pixels) -> Mapping[str, Tensor]:
    """The tensors already have the names of the stock model's arguments."""
    (name, _), *others = pixels.tensors.items()
    return {name: tower_pixels(pixels), **dict(others)}


EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
HYBRID = {
    "rope": {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]},
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
TWO, TWO_AND_A_HALF, THREE = (TinyModel(write, SIZES, as_clip) for write in (qwen2_vl, qwen2_5_vl, qwen3))
THREE_MOE = TinyModel(partial(qwen3, name="Qwen3VLMoe", **EXPERTS), SIZES, as_clip)
THREE_AND_A_HALF = TinyModel(partial(qwen3, name="Qwen3_5", **HYBRID), SIZES, as_clip)
THREE_AND_A_HALF_MOE = TinyModel(partial(qwen3, name="Qwen3_5Moe", **HYBRID, **EXPERTS), SIZES, as_clip)
