"""Idefics3-8B: SigLIP 364/14, 676 patches, pixel shuffle to 169 tokens a tile, Llama 3. SmolVLM: 512/16, 1024 patches
to 64 tokens a tile, a tied Llama; SmolVLM2 adds clips.

Images are cut into at most 2 x 2 tiles of the checkpoints' sizes (the real ones: 4 x 4); `LONG` has 4 x 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.utils import is_num2words_available

from prunesid_cli.types import Pixels
from tests.models.tiny.base import TinyModel, save, tower_pixels
from tests.models.tiny.tokenizers import build_byte_level_tokenizer

TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
COMMON = ("<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *TILES)
LLAMA = ("<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|end_of_text|>", *COMMON)
SMOL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *COMMON)
TURNS = (
    "{% for turn in messages %}{{ turn['role'] | capitalize }}"
    "{{ ':' if turn['content'][0]['type'] == 'image' else ': ' }}{% for part in turn['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<image>' if part['type'] == 'image' else '' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
IMAGE_SETTINGS = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 1,
    "rescale_factor": 1 / 255,
}


def _files(folder: Path, name: str, side: int, tokens: int, longest: int, splits: bool) -> int:
    """The processor's files, as checkpoints from before transformers 5 have them; returns the vocabulary's size."""
    folder.mkdir(parents=True, exist_ok=True)
    llama, clips = name == "Idefics3Llama", name == "SmolVLM"
    special = LLAMA if llama else SMOL
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
    }
    tokenizer = build_byte_level_tokenizer(
        special,
        prefix=special[1] if llama else None,
        bos_token=special[1],
        eos_token="<end_of_utterance>",
        pad_token=special[0],
        extra_special_tokens=named if clips else list(COMMON[:3]),
    )
    tokenizer.save_pretrained(folder)
    kind = "SmolVLM" if clips else "Idefics3"
    owner = {"processor_class": f"{kind}Processor"}
    images = IMAGE_SETTINGS | owner | {"image_processor_type": f"{kind}ImageProcessor", "do_image_splitting": splits}
    images |= {"max_image_size": {"longest_edge": side}, "size": {"longest_edge": longest}}
    if clips:
        images["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "processor_config.json").write_text(json.dumps(owner | {"image_seq_len": tokens}))
    (folder / "chat_template.jinja").write_text(special[1] + TURNS)
    return len(tokenizer)


def _config(kind: Any, vocabulary: int, special: tuple[str, ...], tied: bool, **vision: Any) -> Any:
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=special.index("<end_of_utterance>"),
        tie_word_embeddings=tied,
    )
    common = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    scale = vision.pop("scale_factor")
    return kind(
        vision_config=common | vision,
        text_config=text,
        scale_factor=scale,
        image_token_id=special.index("<image>"),
        tie_word_embeddings=tied,
        pad_token_id=0,
    )


def idefics3(longest: int = 2 * 364, splits: bool = True) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        vocabulary = _files(folder, "Idefics3Llama", 364, 169, longest, splits)
        config = _config(Idefics3Config, vocabulary, LLAMA, False, image_size=364, patch_size=14, scale_factor=2)
        save(Idefics3ForConditionalGeneration, config, folder, seed=1)

    return write


def smol(name: str) -> Callable[[Path], None]:
    kinds = {
        "SmolVLM": (SmolVLMConfig, SmolVLMForConditionalGeneration),
        "Idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    }

    def write(folder: Path) -> None:
        config_class, model_class = kinds[name]
        vocabulary = _files(folder, name, 512, 64, 1024, True)
        config = _config(config_class, vocabulary, SMOL, True, image_size=512, patch_size=16, scale_factor=4)
        save(model_class, config, folder, seed=1)

    return write


def _clip(pixels: Pixels) -> Mapping[str, Tensor]:
    return {"pixel_values": tower_pixels(pixels)[None]}


SIZES = ((364, 364), (500, 200), (90, 400), (8, 8))
PLAIN = TinyModel(idefics3(), SIZES)
LONG = TinyModel(idefics3(4 * 364), ((1000, 250), (100, 400), (300, 70)))
WHOLE = TinyModel(idefics3(splits=False), SIZES[:3])
SMOLVLM1 = TinyModel(smol("Idefics3"), SIZES[:3])
SMOLVLM2 = TinyModel(smol("SmolVLM"), SIZES[:3], _clip if is_num2words_available() else None)
