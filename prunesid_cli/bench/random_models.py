"""Models of well-known sizes and of nobody's weights: their configurations, and just enough of a processor to be asked.

The numbers are those of the config.json that each model was released with; words are a few hundred, since what is said
makes no difference to time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    LlavaProcessor,
)

from prunesid_cli.demo.build import CHAT_TEMPLATE, SPECIAL, build_tokenizer
from prunesid_cli.errors import ModelError
from prunesid_cli.models.loading.checkpoint import Checkpoint, resolve
from prunesid_cli.models.loading.weights import load_config

SIDE, PATCH = 336, 14
VOCABULARY = 32064
GRIDS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
NEXT = "llava_next"
PROCESSORS: dict[str, tuple[Any, Any]] = {
    "llava": (LlavaProcessor, CLIPImageProcessorPil),
    NEXT: (LlavaNextProcessor, LlavaNextImageProcessorPil),
}
WORDS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
"""Files of which a folder with a tokenizer has some."""
CORPUS = ["USER: \nwhat is shown and ASSISTANT: a picture"] * 4


@dataclass(frozen=True)
class Shape:
    """width, inner: of a Llama and of its MLP; tower: layers of CLIP-L; tiles: whether pictures are read in tiles, as
    LLaVA-NeXT does."""

    width: int
    inner: int
    layers: int
    heads: int
    tiles: bool = False
    tower: int = 24
    words: int = VOCABULARY


SHAPES = {
    "llava-1.5-7b": Shape(4096, 11008, 32, 32),
    "llava-1.5-13b": Shape(5120, 13824, 40, 40),
    "llava-next-7b": Shape(4096, 11008, 32, 32, tiles=True),
    "llava-next-13b": Shape(5120, 13824, 40, 40, tiles=True),
}


def clip_large(layers: int = 24) -> CLIPVisionConfig:
    """CLIP-L/336: 576 patches and CLS."""
    return CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=16, image_size=SIDE,
        patch_size=PATCH, projection_dim=768,
    )  # fmt: skip


def llama(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.words, hidden_size=shape.width, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=4096,
    )  # fmt: skip


def config(shape: Shape) -> Any:
    """A LLaVA of that shape."""
    parts = {"vision_config": clip_large(shape.tower), "text_config": llama(shape)}
    return LlavaNextConfig(**parts, image_grid_pinpoints=GRIDS) if shape.tiles else LlavaConfig(**parts)


def processor(config: Any) -> Any:
    """What a LLaVA or LLaVA-NeXT of some configuration can be asked with."""
    side, patch, tiles = config.vision_config.image_size, config.vision_config.patch_size, config.model_type == NEXT
    square: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    pinpoints = {"image_grid_pinpoints": config.image_grid_pinpoints} if tiles else {}
    kind, images = PROCESSORS[config.model_type]
    return kind(
        image_processor=images(**square, **pinpoints),
        tokenizer=build_tokenizer(CORPUS),
        patch_size=patch,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(config.vision_config.model_type == "clip_vision_model"),
        chat_template=CHAT_TEMPLATE,
    )


def write(config: Any, folder: Path) -> None:
    """All of a checkpoint but its weights."""
    config.image_token_index = SPECIAL.index("<image>")
    processor(config).save_pretrained(folder)
    config.save_pretrained(folder)


def of_config(config: Any, folder: Path) -> Checkpoint:
    """A checkpoint with random weights."""
    write(config, folder)
    return replace(resolve(str(folder)), random=True)


def drawn(name: str, revision: str | None, folder: Path) -> Checkpoint:
    """A checkpoint with random weights: of a shape, of a folder or of a repository. `folder`: for what it lacks.

    Raises:
        ModelError: there is no such configuration, or no processor to ask a model of its kind with.
    """
    if name in SHAPES:
        return replace(of_config(config(SHAPES[name]), folder), name=name)
    found = resolve(name, revision)
    if found.commit or any((Path(found.location) / one).is_file() for one in WORDS):
        return replace(found, random=True)
    if found.model_type not in PROCESSORS:
        raise ModelError(f"{name} has no tokenizer", "put the files of the model's processor beside its config.json")
    return replace(of_config(load_config(found), folder), name=found.name)
