"""InternVL3: InternViT 448/14, 1024 patches and CLS, pixel shuffle to 256 tokens a tile, up to 12 tiles, Qwen2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    GptOssConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    Qwen2Config,
    Qwen3Config,
)

from prunesid_cli.types import Pixels
from tests.models.tiny.base import TinyModel, save, tower_pixels
from tests.models.tiny.tokenizers import build_byte_level_tokenizer

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<unk>")
TEMPLATE = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn['role'] + '\\n' }}"
    "{% if turn['content'] is string %}{{ turn['content'] }}{% else %}{% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif part['type'] == 'video' %}{{ '<video>\\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
IMAGE_SETTINGS = {
    "crop_to_patches": False,  # the processor's default is True
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_patches": 12,
    "min_patches": 1,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 448, "width": 448},
}
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 8192,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "attention_bias": True,
    "image_size": [448, 448],
    "patch_size": [14, 14],
}


def _files(folder: Path) -> int:
    """The processor's files, as checkpoints from before transformers 5 have them; returns the vocabulary's size."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_byte_level_tokenizer(
        SPECIAL,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    tokenizer.save_pretrained(folder)
    kind = {"processor_class": "InternVLProcessor"}
    files = {
        "preprocessor_config.json": IMAGE_SETTINGS | kind | {"image_processor_type": "GotOcr2ImageProcessorFast"},
        "video_preprocessor_config.json": IMAGE_SETTINGS | kind | {"video_processor_type": "InternVLVideoProcessor"},
        "processor_config.json": kind | {"image_seq_length": 256},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return len(tokenizer)


def _config(vocabulary: int, kind: Any = Qwen2Config, layer: int = -1, **vision: Any) -> InternVLConfig:
    text = kind(vocab_size=vocabulary, tie_word_embeddings=True, **TEXT)
    return InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION | vision),
        text_config=text,
        image_token_id=SPECIAL.index("<IMG_CONTEXT>"),
        vision_feature_layer=layer,
        tie_word_embeddings=True,
    )


def internvl(folder: Path) -> None:
    save(InternVLForConditionalGeneration, _config(_files(folder)), folder)


def internvl_large(folder: Path) -> None:
    """The tower of 6 B, with RMS norms also for queries and keys, and Qwen3."""
    vision = {"use_qk_norm": True, "norm_type": "rms_norm", "attention_bias": False}
    save(InternVLForConditionalGeneration, _config(_files(folder), Qwen3Config, **vision), folder, seed=1)


def internvl_inner(folder: Path) -> None:
    """Features of the second last layer, in a tower that ends with a norm."""
    config = _config(_files(folder), layer=-2, num_hidden_layers=3, use_mean_pooling=False)
    save(InternVLForConditionalGeneration, config, folder)


def internvl_gpt_oss(folder: Path) -> None:
    """GPT-OSS, which transformers runs without SDPA, as its attention has sinks. The tower runs with SDPA."""
    config = _config(_files(folder))
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}
    vocabulary = config.text_config.vocab_size
    config.text_config = GptOssConfig(vocab_size=vocabulary, head_dim=12, **TEXT, **experts, **layers)
    config.tie_word_embeddings = False
    save(InternVLForConditionalGeneration, config, folder)


def _clip(pixels: Pixels) -> Mapping[str, Tensor]:
    return {"pixel_values": tower_pixels(pixels)}


SIZES = ((448, 448), (900, 880), (1200, 300), (60, 240), (8, 8))
PLAIN = TinyModel(internvl, SIZES, _clip)
LARGE = TinyModel(internvl_large, SIZES[:3])
INNER = TinyModel(internvl_inner, SIZES[1:3])
GPT_OSS = TinyModel(internvl_gpt_oss, SIZES[2:4])
