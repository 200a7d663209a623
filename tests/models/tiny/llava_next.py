"""LLaVA-NeXT and LLaVA-NeXT-Video as released: Mistral, Vicuna, Yi, Qwen and Granite; CLIP 336 and SigLIP 384.

Tile sizes, pinpoints, layers and strategies are the real ones. Patches are larger, so that tests stay fast: a tile of
CLIP has 12 x 12 of them, a tile of SigLIP 9 x 9, which is odd, as the real 27 x 27 are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    CLIPVisionConfig,
    GraniteConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessorPil,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from tests.models.tiny.base import Sizes, TinyModel, save, tower_pixels

GRID_336 = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
GRID_384 = [[384 * rows, 384 * columns] for rows in range(1, 11) for columns in range(1, 11) if rows * columns <= 10]
NARROW = (8, 1000)
"""Size of an image. A grid shows less than one column of its patches, and so none."""
GRIDS: Sizes = ((500, 400), (640, 200), (300, 1000), (1000, 320), (400, 640), (40, 30), NARROW)
FEW: Sizes = ((700, 500), (90, 400), (400, 380))
CORPUS = ["USER: what is shown? ASSISTANT: a red square and a blue circle, user, assistant and system"] * 4

LOOP = "{% for message in messages %}"
MEDIA = (
    "{% for part in message['content'] if part['type'] in ('image', 'video') %}"
    "{{ '<' ~ part['type'] ~ '>\\n' }}{% endfor %}"
)
TEXT = "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"


@dataclass(frozen=True)
class Vocabulary:
    """Special tokens and chat template of a checkpoint.

    Attributes:
        special: Special tokens: padding, start, end, and others.
        template: Chat template.
    """

    special: tuple[str, ...]
    template: str


def _turns(user: str, end: str, assistant: str, first: str = "") -> str:
    answer = "{% endfor %}{% if add_generation_prompt %}" + assistant + "{% endif %}"
    return first + LOOP + user + MEDIA + TEXT + end + answer


LLAMA = ("<pad>", "<s>", "</s>", "<unk>")
CHATML = {"user": "<|im_start|>user\n", "end": "<|im_end|>\n", "assistant": "<|im_start|>assistant\n"}
MISTRAL_VOCABULARY = Vocabulary(LLAMA, _turns("[INST] ", " [/INST]", ""))
VICUNA_VOCABULARY = Vocabulary(LLAMA, _turns("USER: ", " ", "ASSISTANT:", "a chat with a curious user. "))
YI_VOCABULARY = Vocabulary(("<unk>", "<|startoftext|>", "<|im_end|>", "<|im_start|>"), _turns(**CHATML))
QWEN_VOCABULARY = Vocabulary(
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    _turns(**CHATML, first="<|im_start|>system\nyou are a helpful assistant.<|im_end|>\n"),
)
GRANITE_VOCABULARY = Vocabulary(
    ("<fim_prefix>", "<|start_of_role|>", "<|end_of_text|>", "<|end_of_role|>"),
    _turns("<|user|>\n", "\n", "<|assistant|>\n", "<|system|>\na chat between a user and an assistant.\n"),
)


def _tokenizer(vocabulary: Vocabulary, media: tuple[str, ...]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*vocabulary.special, *media]
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        extra_special_tokens=special[3:],
        padding_side="left",
        chat_template=vocabulary.template,
        **names,
    )


@dataclass(frozen=True)
class TowerSettings:
    """A vision tower, and what the model reads of it."""

    config: Any
    pinpoints: list[list[int]]
    strategy: str
    layers: int | list[int]

    def processor_settings(self, num_cls: int) -> dict[str, Any]:
        """Settings with which the processor counts tokens. `num_cls`: number of CLS tokens of the tower."""
        return {
            "patch_size": self.config.patch_size,
            "vision_feature_select_strategy": self.strategy,
            "num_additional_image_tokens": num_cls,
        }


def _clip(layers: int | list[int] = -2, patch: int = 28) -> TowerSettings:
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=336,
        patch_size=patch,
        projection_dim=32,
    )
    return TowerSettings(config, GRID_336, "default", layers)


def _siglip(layers: int | list[int]) -> TowerSettings:
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=384,
        patch_size=42,
    )
    return TowerSettings(config, GRID_384, "full", layers)


def _files(folder: Path, tower: TowerSettings, vocabulary: Vocabulary, media: tuple[str, ...], kind: str) -> int:
    """Write tokenizer and processor; returns the size of the vocabulary."""
    tokenizer = _tokenizer(vocabulary, media)
    tokenizer.save_pretrained(folder)
    side = tower.config.image_size
    square = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    LlavaNextImageProcessorPil(**square, image_grid_pinpoints=tower.pinpoints).save_pretrained(folder)
    has_cls = tower.config.model_type == "clip_vision_model"
    settings = {"processor_class": kind, **tower.processor_settings(int(has_cls))}
    (folder / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if "<video>" in media:
        video = {"video_processor_type": f"{kind[:-9]}VideoProcessor", **square, "do_sample_frames": False}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video), encoding="utf-8")
    return len(tokenizer)


def _text(kind: Any, vocabulary: int, **more: Any) -> Any:
    return kind(
        vocab_size=vocabulary,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


def write_llava_next(
    folder: Path, tower: TowerSettings, vocabulary: Vocabulary, text: Any, more: Mapping[str, Any] | None = None
) -> None:
    """Write a LLaVA-NeXT."""
    vocab_size = _files(folder, tower, vocabulary, ("<image>",), "LlavaNextProcessor")
    text_config = _text(text, vocab_size, **(more or {}))
    config = LlavaNextConfig(
        vision_config=tower.config,
        text_config=text_config,
        tie_word_embeddings=text_config.tie_word_embeddings,
        image_token_index=len(vocabulary.special),
        image_grid_pinpoints=tower.pinpoints,
        vision_feature_select_strategy=tower.strategy,
        vision_feature_layer=tower.layers,
    )
    save(LlavaNextForConditionalGeneration, config, folder)


def write_llava_next_video(
    folder: Path, tower: TowerSettings, vocabulary: Vocabulary, text: Any, pool: str = "average"
) -> None:
    """Write a LLaVA-NeXT-Video."""
    vocab_size = _files(folder, tower, vocabulary, ("<video>", "<image>"), "LlavaNextVideoProcessor")
    config = LlavaNextVideoConfig(
        vision_config=tower.config,
        text_config=_text(text, vocab_size),
        video_token_index=len(vocabulary.special),
        image_token_index=len(vocabulary.special) + 1,
        image_grid_pinpoints=tower.pinpoints,
        vision_feature_select_strategy=tower.strategy,
        vision_feature_layer=tower.layers,
        spatial_pool_mode=pool,
        spatial_pool_stride=2,
    )
    save(LlavaNextVideoForConditionalGeneration, config, folder)


def _frames(pixels: Any) -> dict[str, Any]:
    return {"pixel_values_videos": tower_pixels(pixels)[None]}


MISTRAL = TinyModel(partial(write_llava_next, tower=_clip(), vocabulary=MISTRAL_VOCABULARY, text=MistralConfig), GRIDS)
VICUNA = TinyModel(partial(write_llava_next, tower=_clip(), vocabulary=VICUNA_VOCABULARY, text=LlamaConfig), FEW)
YI_LAYERS = TinyModel(partial(write_llava_next, tower=_clip([-3, 3]), vocabulary=YI_VOCABULARY, text=LlamaConfig), FEW)
QWEN = TinyModel(partial(write_llava_next, tower=_clip(), vocabulary=QWEN_VOCABULARY, text=Qwen2Config), FEW)
GRANITE = TinyModel(
    partial(
        write_llava_next,
        tower=_siglip([-4, -3, -2, -1]),
        vocabulary=GRANITE_VOCABULARY,
        text=GraniteConfig,
        more={
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.015625,
            "residual_multiplier": 0.9,
            "tie_word_embeddings": True,
        },
    ),
    ((700, 500), (3000, 200), (300, 2600), (800, 900), (40, 30), (6, 2000)),
)
VIDEO = TinyModel(
    partial(write_llava_next_video, tower=_clip(), vocabulary=VICUNA_VOCABULARY, text=LlamaConfig),
    FEW,
    clip_inputs=_frames,
)
VIDEO_SIGLIP = TinyModel(
    partial(
        write_llava_next_video, tower=_siglip([-2, -1]), vocabulary=MISTRAL_VOCABULARY, text=MistralConfig, pool="max"
    ),
    FEW,
    clip_inputs=_frames,
)
