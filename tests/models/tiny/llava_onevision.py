"""LLaVA-OneVision: SigLIP 384 without a pooling head, 36 pinpoints, frames pooled 2 to 1, an MLP, Qwen2.

Patches are three times as wide as the real ones, 9 x 9 a tile and not 27 x 27, so that every grid can be tried; `REAL`
has the real ones.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessorPil,
    Qwen2Config,
    SiglipVisionConfig,
)

from prunesid_cli.types import Pixels
from tests.models.tiny.base import TinyModel, save, tower_pixels
from tests.models.tiny.tokenizers import build_uppercase_tokenizer

SIDE, STANDARD = 384, [0.5, 0.5, 0.5]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}{{ '<video>' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ '\n' + part['text'] }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FRAMES = {
    "video_processor_type": "LlavaOnevisionVideoProcessor",
    "do_resize": True,
    "size": {"height": SIDE, "width": SIDE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": STANDARD,
    "image_std": STANDARD,
    "do_convert_rgb": True,
}


def processor_files(folder: Path, tokens: int) -> int:
    """Write the files of a processor, with one for clips. Returns the size of the vocabulary."""
    words = build_uppercase_tokenizer(SPECIAL, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    words.chat_template = CHAT_TEMPLATE
    words.save_pretrained(folder)
    LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=STANDARD, image_std=STANDARD
    ).save_pretrained(folder)
    settings = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": tokens,
        "vision_feature_select_strategy": "full",
        "image_token": "<image>",
        "video_token": "<video>",
        "vision_aspect_ratio": "anyres_max_9",
    }
    (folder / "processor_config.json").write_text(json.dumps(settings))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(FRAMES))
    return len(words)


def llava_onevision(folder: Path, patch: int = 42, layer: int = -1) -> None:
    vocabulary = processor_files(folder, (SIDE // patch) ** 2)
    vision = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=patch,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=SPECIAL.index("<|endoftext|>"),
        eos_token_id=SPECIAL.index("<|im_end|>"),
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        video_token_index=SPECIAL.index("<video>"),
        vision_feature_layer=layer,
    )
    save(LlavaOnevisionForConditionalGeneration, config, folder)


def _clip(pixels: Pixels) -> dict[str, object]:
    return {"pixel_values_videos": tower_pixels(pixels)[None]}


GRIDS = ((384, 384), (700, 500), (1500, 200), (150, 1300), (1100, 1900), (20, 30))
"""1 x 1, 2 x 2, 1 x 4, 4 x 1 and 5 x 3 tiles, the last ones shrunk, and one tile for a tiny image."""
PLAIN = TinyModel(llava_onevision, GRIDS, _clip)
REAL = TinyModel(partial(llava_onevision, patch=14), ((300, 300), (350, 200)), _clip)
EARLIER = TinyModel(partial(llava_onevision, layer=-2), GRIDS[:2], _clip)
