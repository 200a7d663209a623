"""Original checkpoints of LLaVA-1.5 and 1.6, in the format of their authors instead of that of transformers.

Their config.json is that of a language model with extra `mm_` settings. The vision tower is stored with them, or in the
repo that `mm_vision_tower` names. This module builds a configuration of transformers from these settings, and maps the
names of the weights, so the adapters of `llava` and `llava_next` need no special cases. The weights may be pickles;
torch reads those without running code (`weights_only`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, CLIPVisionModel, LlavaConfig, LlavaNextConfig

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.original_processor import find_image_token_id, grid_pinpoints, resolve_tower
from prunesid_cli.models.loading.pretrained import read_pretrained
from prunesid_cli.types import Placement

FROM_PRETRAINED_OPTIONS = {
    "use_safetensors": None,  # safetensors if there are any, else pickles
    "key_mapping": {
        r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
        r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
        r"^model\.mm_projector\.(weight|bias)": r"model.multi_modal_projector.linear_1.\1",
        r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
        r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
    },
}
"""How `from_pretrained` finds the weights: the authors' names -> those of transformers."""
TOWER_PREFIX = "model.vision_tower."

CONFIG_CLASSES: dict[str, Any] = {"llava": LlavaConfig, "llava_next": LlavaNextConfig}
TEXT_MODEL_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
"""model_type in config.json -> that of the language model."""
OLD_ROPE_SETTINGS = ("rope_theta", "rope_scaling")
"""Settings of a language model that transformers still reads under these names, but no longer writes."""
NOT_TEXT_SETTINGS = {"model_type", "architectures", "transformers_version", "dtype", "_name_or_path"}
SELECT_STRATEGIES = {"patch": "default", "cls_patch": "full"}
PROJECTOR_ACTIVATIONS = {"mlp2x_gelu": "gelu", "linear": "linear"}

DEFAULTS = {"mm_projector_type": "linear", "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat"}
"""Values that the authors' code assumes for settings that are not in the file."""
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": tuple(PROJECTOR_ACTIVATIONS),
    "mm_vision_select_feature": tuple(SELECT_STRATEGIES),
    "mm_use_im_start_end": (None, False),
    "mm_resampler_type": (None,),
}
"""Setting -> its supported values; None stands for a missing setting."""
SUPPORTED_BY_TYPE: dict[str, dict[str, tuple[Any, ...]]] = {
    "llava": SUPPORTED | {"image_aspect_ratio": (None, "square", "pad")},
    "llava_next": SUPPORTED | {"image_aspect_ratio": ("anyres",), "mm_patch_merge_type": ("spatial_unpad",)},
}


def build_config(checkpoint: Checkpoint) -> Any:
    """Build the configuration of transformers that is equivalent to an original checkpoint's settings.

    Raises:
        UnsupportedModel: A setting has a value that is not supported.
        ModelError: The tower's repo or the tokenizer cannot be read.
    """
    settings = DEFAULTS | (checkpoint.original_config or {})
    _check_settings(checkpoint, settings)
    text = AutoConfig.for_model(TEXT_MODEL_TYPES[settings["model_type"]])
    text_names = {*text.to_dict(), *OLD_ROPE_SETTINGS} - NOT_TEXT_SETTINGS
    text_settings = {name: value for name, value in settings.items() if name in text_names and value is not None}
    tower = resolve_tower(checkpoint)
    vision = AutoConfig.from_pretrained(tower.location, revision=tower.commit, trust_remote_code=False)
    vision = getattr(vision, "vision_config", vision)
    if vision.model_type != "clip_vision_model":
        raise UnsupportedModel(
            f"{checkpoint.name} is an original LLaVA checkpoint with mm_vision_tower {settings['mm_vision_tower']!r}",
            hint="supported: towers of CLIP",
        )
    config = CONFIG_CLASSES[checkpoint.model_type](
        vision_config=vision,
        text_config=type(text)(**text_settings),
        image_token_index=find_image_token_id(checkpoint.location, checkpoint.commit, text.model_type),
        vision_feature_layer=settings.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=SELECT_STRATEGIES[settings["mm_vision_select_feature"]],
        projector_hidden_act=PROJECTOR_ACTIVATIONS[settings["mm_projector_type"]],
        **grid_pinpoints(checkpoint),
    )
    config.dtype = getattr(torch, settings.get("torch_dtype") or "float16")
    return config


def adapt_model_class(model_class: Any, config: Any) -> Any:
    """The model's class, with a projector of one layer if the settings ask for it; transformers only has two layers."""
    if config.projector_hidden_act != "linear":
        return model_class

    class LinearProjectorModel(model_class):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model.multi_modal_projector.linear_2 = nn.Identity()

    LinearProjectorModel.__name__ = model_class.__name__
    return LinearProjectorModel


def load_separate_tower(model: Any, missing: list[str], checkpoint: Checkpoint, placement: Placement) -> list[str]:
    """Load the vision tower from its own repo, if it is not stored with the checkpoint.

    Args:
        model: A model whose other weights were read; its tower is replaced.
        missing: Names of the model's weights that the checkpoint does not have.
        checkpoint: The original checkpoint, which names the tower.
        placement: Where and how the tower runs.

    Returns:
        The names of weights that are missing now.
    """
    tower = model.model.vision_tower
    if {TOWER_PREFIX + name for name, _ in tower.named_parameters()} - set(missing):
        return missing
    missing_elsewhere = [name for name in missing if not name.startswith(TOWER_PREFIX)]
    if not tower.config.num_hidden_layers:  # this is the language half, which does not use the tower
        return missing_elsewhere
    model.model.vision_tower, report = read_pretrained(
        CLIPVisionModel, resolve_tower(checkpoint), tower.config, placement, use_safetensors=None
    )
    return missing_elsewhere + [TOWER_PREFIX + name for name in report.missing]


def _check_settings(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> None:
    """Refuse the first setting whose value is not supported."""
    for name, values in SUPPORTED_BY_TYPE[checkpoint.model_type].items():
        if settings.get(name) not in values:
            supported = ", ".join(str(value) for value in values if value is not None)
            raise UnsupportedModel(
                f"{checkpoint.name} is an original LLaVA checkpoint with {name} {settings.get(name)!r}",
                hint=f"supported: {supported or 'none'}",
            )
