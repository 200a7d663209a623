"""What would be done with a model, and what it takes: from its configuration alone, without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from prunesid_cli.errors import ModelError
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.processor import supports_clips
from prunesid_cli.pipeline.settings import Settings
from prunesid_cli.types import Placement

IMAGE_SIZE = (1280, 960)
"""Width and height of the image whose tokens are counted."""
BYTES_PER_NUMBER = 2
"""bf16, of weights and of cached tokens."""
MAX_FEATURE_LAYERS = 8


@dataclass(frozen=True)
class ModelInfo:
    """A model by its configuration.

    Attributes:
        name: A repo id, a folder, or "demo".
        model_type: The type of transformers.
        family: The adapter that runs it.
        cut: "before the projector" or "after the projector".
        clips: Whether it reads clips here.
        clips_need: A package that is missing, with which it does; else empty.
        vision_parameters: Parameters of the vision half.
        language_parameters: Parameters of the language half.
        vision_bytes: Memory of the vision half's weights in bf16.
        language_bytes: Memory of the language half's weights in bf16.
        image_tokens: Visual tokens of an image of `IMAGE_SIZE`.
        kept_tokens: How many of them are kept by default.
        token_width: Numbers of a cached token.
        cache_bytes: Bytes of the kept tokens of such an image in a cache, in bf16.
    """

    name: str
    model_type: str
    family: str
    cut: str
    clips: bool
    clips_need: str
    vision_parameters: int
    language_parameters: int
    vision_bytes: int
    language_bytes: int
    image_tokens: int
    kept_tokens: int
    token_width: int
    cache_bytes: int


def describe_model(checkpoint: Checkpoint) -> ModelInfo:
    """Describe a checkpoint whose files but for the weights are there.

    Args:
        checkpoint: The checkpoint.

    Raises:
        ModelError: Its type is not supported, or its files cannot be read.
    """
    transformers_logging.set_verbosity_error()
    family = load_family(checkpoint.model_type)
    family.check_supported(checkpoint)
    meta = Placement(torch.device("meta"), torch.bfloat16, None)
    vision, language = family.load_vision_half(checkpoint, meta), family.load_language_half(checkpoint, meta)
    assert isinstance(language, BaseLanguageHalf)
    layout = vision.preprocess(media_from_image(Image.new("RGB", IMAGE_SIZE))).layout
    kept = Settings(model=checkpoint.name).budget().tokens(layout.num_visual)
    width, cut = token_width(language, load_config(checkpoint))
    vision_parameters, language_parameters = count_parameters(vision), count_parameters(language)
    return ModelInfo(
        name=checkpoint.name,
        model_type=checkpoint.model_type,
        family=type(family).__name__,
        cut=cut,
        clips=supports_clips(vision) and not getattr(vision, "clips_need", ""),
        clips_need=getattr(vision, "clips_need", ""),
        vision_parameters=vision_parameters,
        language_parameters=language_parameters,
        vision_bytes=BYTES_PER_NUMBER * vision_parameters,
        language_bytes=BYTES_PER_NUMBER * language_parameters,
        image_tokens=layout.num_visual,
        kept_tokens=kept,
        token_width=width,
        cache_bytes=BYTES_PER_NUMBER * kept * width,
    )


def count_parameters(half: Any) -> int:
    """Number of parameters of a half's modules, each counted once."""
    modules = [value for value in vars(half).values() if isinstance(value, torch.nn.Module)]
    return sum(parameter.numel() for parameter in {p for module in modules for p in module.parameters()})


def token_width(language: BaseLanguageHalf, config: Any) -> tuple[int, str]:
    """Numbers of a token at the cut, and where the cut is."""
    width, tower = language.model.get_input_embeddings().embedding_dim, getattr(config, "vision_config", None)
    if type(language).project is BaseLanguageHalf.project:
        return width * (1 + language.num_deepstack), "after the projector"
    tower_width = tower.hidden_size if tower else config.mm_hidden_size
    for count in range(1, MAX_FEATURE_LAYERS):  # the projectors of some models read features of several layers
        try:
            language.project(torch.empty(1, count * tower_width, device="meta", dtype=torch.bfloat16))
        except RuntimeError:
            continue
        return count * tower_width, "before the projector"
    raise ModelError("the width of this model's tokens cannot be found", "report it")
