"""Models with random weights, for timing only: configurations of well-known sizes, and processors to prompt them with.

The sizes are those of the config.json that each model was released with. The tokenizer has a few hundred words, since
the text of a prompt makes no difference to time.
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

from prunesid_cli.demo.build import CHAT_TEMPLATE, SPECIAL_TOKENS, build_tokenizer
from prunesid_cli.errors import ModelError
from prunesid_cli.models.loading.checkpoint import Checkpoint, resolve
from prunesid_cli.models.loading.weights import load_config

IMAGE_SIDE, PATCH_SIDE = 336, 14
VOCABULARY_SIZE = 32064
IMAGE_GRID_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
LLAVA_NEXT = "llava_next"
PROCESSORS: dict[str, tuple[Any, Any]] = {
    "llava": (LlavaProcessor, CLIPImageProcessorPil),
    LLAVA_NEXT: (LlavaNextProcessor, LlavaNextImageProcessorPil),
}
"""Model type -> classes of the processor and of its image processor."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
"""A folder with a tokenizer has at least one of these files."""
CORPUS = ["USER: \nwhat is shown and ASSISTANT: a picture"] * 4


@dataclass(frozen=True)
class Shape:
    """Sizes of a LLaVA with a CLIP-L/336 tower.

    Attributes:
        hidden_size: Width of the Llama.
        intermediate_size: Width of its MLP.
        layers: Layers of the Llama.
        heads: Attention heads of the Llama.
        has_tiles: Whether images are read in tiles, as in LLaVA-NeXT.
        tower_layers: Layers of the tower.
        vocabulary_size: Rows of the embedding table.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    has_tiles: bool = False
    tower_layers: int = 24
    vocabulary_size: int = VOCABULARY_SIZE


SHAPES = {
    "llava-1.5-7b": Shape(4096, 11008, 32, 32),
    "llava-1.5-13b": Shape(5120, 13824, 40, 40),
    "llava-next-7b": Shape(4096, 11008, 32, 32, has_tiles=True),
    "llava-next-13b": Shape(5120, 13824, 40, 40, has_tiles=True),
}


def llava_config(shape: Shape) -> Any:
    """Return the transformers configuration of a shape."""
    # CLIP-L/336: 576 patches and CLS.
    vision_config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=16,
        image_size=IMAGE_SIDE,
        patch_size=PATCH_SIDE,
        projection_dim=768,
    )
    text_config = LlamaConfig(
        vocab_size=shape.vocabulary_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=4096,
    )
    if shape.has_tiles:
        return LlavaNextConfig(
            vision_config=vision_config, text_config=text_config, image_grid_pinpoints=IMAGE_GRID_PINPOINTS
        )
    return LlavaConfig(vision_config=vision_config, text_config=text_config)


def llava_processor(config: Any) -> Any:
    """Return a processor for a LLaVA or LLaVA-NeXT configuration."""
    processor_class, image_processor_class = PROCESSORS[config.model_type]
    side = config.vision_config.image_size
    image_options: dict[str, Any] = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if config.model_type == LLAVA_NEXT:
        image_options["image_grid_pinpoints"] = config.image_grid_pinpoints
    return processor_class(
        image_processor=image_processor_class(**image_options),
        tokenizer=build_tokenizer(CORPUS),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=int(config.vision_config.model_type == "clip_vision_model"),
        chat_template=CHAT_TEMPLATE,
    )


def write_without_weights(config: Any, folder: Path) -> None:
    """Write all files of a checkpoint except its weights."""
    config.image_token_index = SPECIAL_TOKENS.index("<image>")
    llava_processor(config).save_pretrained(folder)
    config.save_pretrained(folder)


def checkpoint_from_config(config: Any, folder: Path) -> Checkpoint:
    """Write the files of a configuration, and return a checkpoint with random weights."""
    write_without_weights(config, folder)
    return replace(resolve(str(folder)), has_random_weights=True)


def random_checkpoint(name: str, revision: str | None, folder: Path) -> Checkpoint:
    """Find a configuration, and return a checkpoint with random weights.

    Args:
        name: A name of `SHAPES`, a folder or a repository.
        revision: Revision of the repository.
        folder: Where files are written that the configuration lacks.

    Raises:
        ModelError: There is no such configuration, or no processor for its kind of model.
    """
    if name in SHAPES:
        return replace(checkpoint_from_config(llava_config(SHAPES[name]), folder), name=name)
    checkpoint = resolve(name, revision)
    has_tokenizer = any((Path(checkpoint.location) / file).is_file() for file in TOKENIZER_FILES)
    if checkpoint.commit or has_tokenizer:
        return replace(checkpoint, has_random_weights=True)
    if checkpoint.model_type not in PROCESSORS:
        raise ModelError(f"{name} has no tokenizer", "put the files of the model's processor beside its config.json")
    return replace(checkpoint_from_config(load_config(checkpoint), folder), name=checkpoint.name)
