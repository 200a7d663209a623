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

from tests.models.tiny.base import Sizes, TinyModel, save

GRID_336 = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
GRID_384 = [[384 * rows, 384 * columns] for rows in range(1, 11) for columns in range(1, 11) if rows * columns <= 10]
NARROW = (8, 1000)
"""Less than one column of patches is left of it in a grid: none."""
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
class Words:
    """special: for padding, the start, the end, and others; template: of a chat."""

    special: tuple[str, ...]
    template: str


def _turns(user: str, end: str, assistant: str, first: str = "") -> str:
    answer = "{% endfor %}{% if add_generation_prompt %}" + assistant + "{% endif %}"
    return first + LOOP + user + MEDIA + TEXT + end + answer


LLAMA = ("<pad>", "<s>", "</s>", "<unk>")
CHATML = {"user": "<|im_start|>user\n", "end": "<|im_end|>\n", "assistant": "<|im_start|>assistant\n"}
MISTRAL_WORDS = Words(LLAMA, _turns("[INST] ", " [/INST]", ""))
VICUNA_WORDS = Words(LLAMA, _turns("USER: ", " ", "ASSISTANT:", "a chat with a curious user. "))
YI_WORDS = Words(("<unk>", "<|startoftext|>", "<|im_end|>", "<|im_start|>"), _turns(**CHATML))
QWEN_WORDS = Words(
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    _turns(**CHATML, first="<|im_start|>system\nyou are a helpful assistant.<|im_end|>\n"),
)
GRANITE_WORDS = Words(
    ("<fim_prefix>", "<|start_of_role|>", "<|end_of_text|>", "<|end_of_role|>"),
    _turns("<|user|>\n", "\n", "<|assistant|>\n", "<|system|>\na chat between a user and an assistant.\n"),
)


def _tokenizer(words: Words, media: tuple[str, ...]) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Lowercase()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [*words.special, *media]
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    names = dict(zip(("pad_token", "bos_token", "eos_token"), special, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        extra_special_tokens=special[3:],
        padding_side="left",
        chat_template=words.template,
        **names,
    )


@dataclass(frozen=True)
class Eye:
    """A tower, and what is read of it."""

    config: Any
    pinpoints: list[list[int]]
    strategy: str
    layers: int | list[int]

    def settings(self, words: int) -> dict[str, Any]:
        """What processor_config.json says: how the processor counts; words: CLS tokens."""
        return {
            "patch_size": self.config.patch_size,
            "vision_feature_select_strategy": self.strategy,
            "num_additional_image_tokens": words,
        }


def _clip(layers: int | list[int] = -2, patch: int = 28) -> Eye:
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=336,
        patch_size=patch,
        projection_dim=32,
    )
    return Eye(config, GRID_336, "default", layers)


def _siglip(layers: int | list[int]) -> Eye:
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=384,
        patch_size=42,
    )
    return Eye(config, GRID_384, "full", layers)


def _files(folder: Path, eye: Eye, words: Words, media: tuple[str, ...], kind: str) -> int:
    """Write tokenizer and processor; returns the size of the vocabulary."""
    tokenizer = _tokenizer(words, media)
    tokenizer.save_pretrained(folder)
    side = eye.config.image_size
    square = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    LlavaNextImageProcessorPil(**square, image_grid_pinpoints=eye.pinpoints).save_pretrained(folder)
    has_cls = eye.config.model_type == "clip_vision_model"
    settings = {"processor_class": kind, **eye.settings(int(has_cls))}
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


def pictures(folder: Path, eye: Eye, words: Words, text: Any, more: Mapping[str, Any] | None = None) -> None:
    """A LLaVA-NeXT."""
    vocabulary = _files(folder, eye, words, ("<image>",), "LlavaNextProcessor")
    spoken = _text(text, vocabulary, **(more or {}))
    config = LlavaNextConfig(
        vision_config=eye.config,
        text_config=spoken,
        tie_word_embeddings=spoken.tie_word_embeddings,
        image_token_index=len(words.special),
        image_grid_pinpoints=eye.pinpoints,
        vision_feature_select_strategy=eye.strategy,
        vision_feature_layer=eye.layers,
    )
    save(LlavaNextForConditionalGeneration, config, folder)


def clips(folder: Path, eye: Eye, words: Words, text: Any, pool: str = "average") -> None:
    """A LLaVA-NeXT-Video."""
    vocabulary = _files(folder, eye, words, ("<video>", "<image>"), "LlavaNextVideoProcessor")
    config = LlavaNextVideoConfig(
        vision_config=eye.config,
        text_config=_text(text, vocabulary),
        video_token_index=len(words.special),
        image_token_index=len(words.special) + 1,
        image_grid_pinpoints=eye.pinpoints,
        vision_feature_select_strategy=eye.strategy,
        vision_feature_layer=eye.layers,
        spatial_pool_mode=pool,
        spatial_pool_stride=2,
    )
    save(LlavaNextVideoForConditionalGeneration, config, folder)


def _frames(pixels: Any) -> dict[str, Any]:
    return {"pixel_values_videos": pixels.tensors["pixel_values_videos"][None]}


MISTRAL = TinyModel(partial(pictures, eye=_clip(), words=MISTRAL_WORDS, text=MistralConfig), GRIDS)
VICUNA = TinyModel(partial(pictures, eye=_clip(), words=VICUNA_WORDS, text=LlamaConfig), FEW)
YI_LAYERS = TinyModel(partial(pictures, eye=_clip([-3, 3]), words=YI_WORDS, text=LlamaConfig), FEW)
QWEN = TinyModel(partial(pictures, eye=_clip(), words=QWEN_WORDS, text=Qwen2Config), FEW)
GRANITE = TinyModel(
    partial(
        pictures,
        eye=_siglip([-4, -3, -2, -1]),
        words=GRANITE_WORDS,
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
VIDEO = TinyModel(partial(clips, eye=_clip(), words=VICUNA_WORDS, text=LlamaConfig), FEW, clip_inputs=_frames)
VIDEO_SIGLIP = TinyModel(
    partial(clips, eye=_siglip([-2, -1]), words=MISTRAL_WORDS, text=MistralConfig, pool="max"), FEW, clip_inputs=_frames
)
