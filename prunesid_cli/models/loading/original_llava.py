"""LLaVA-1.5 and 1.6 as their authors published them: the weights of LLaVA, other names, and settings of another kind.

Their config.json is a language model's with `mm_` settings. The tower comes with them or from the repo that
`mm_vision_tower` names. From these a configuration of transformers is made, so that the adapters of `llava` and
`llava_next` need not know. Weights may be pickles, which torch then reads without running code (`weights_only`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, CLIPVisionModel, LlavaConfig, LlavaNextConfig

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.models.loading import weights as loading
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.original_processor import image_id, pinpoints, tower_of
from prunesid_cli.types import Placement

READING = {
    "use_safetensors": None,  # where there are some
    "key_mapping": {
        r"^model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
        r"^model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
        r"^model\.mm_projector\.(weight|bias)": r"model.multi_modal_projector.linear_1.\1",
        r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
        r"^model\.(layers|embed_tokens|norm)\.": r"model.language_model.\1.",
    },
}
"""How `from_pretrained` finds the weights: their names -> those of transformers."""
TOWER = "model.vision_tower."

CONFIGS: dict[str, Any] = {"llava": LlavaConfig, "llava_next": LlavaNextConfig}
TEXTS = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral"}
"""model_type in config.json -> that of the language model."""
OTHER_ROPE = ("rope_theta", "rope_scaling")
"""Settings of a language model under names that transformers reads and does not write any more."""
NOT_TEXT = {"model_type", "architectures", "transformers_version", "dtype", "_name_or_path"}
STRATEGIES = {"patch": "default", "cls_patch": "full"}
ACTIVATIONS = {"mlp2x_gelu": "gelu", "linear": "linear"}

DEFAULTS = {"mm_projector_type": "linear", "mm_vision_select_feature": "patch", "mm_patch_merge_type": "flat"}
"""What their code takes a setting to be that is not there."""
KNOWN: dict[str, tuple[Any, ...]] = {
    "mm_projector_type": tuple(ACTIVATIONS),
    "mm_vision_select_feature": tuple(STRATEGIES),
    "mm_use_im_start_end": (None, False),
    "mm_resampler_type": (None,),
}
OF_ONE: dict[str, tuple[Any, ...]] = {"image_aspect_ratio": (None, "square", "pad")}
OF_TILES: dict[str, tuple[Any, ...]] = {"image_aspect_ratio": ("anyres",), "mm_patch_merge_type": ("spatial_unpad",)}


def check(checkpoint: Checkpoint) -> None:
    """Refuse by name what is not understood."""
    said = DEFAULTS | (checkpoint.original or {})
    known = KNOWN | (OF_TILES if checkpoint.model_type == "llava_next" else OF_ONE)
    wrong = next((name for name, values in known.items() if said.get(name) not in values), None)
    if wrong:
        raise UnsupportedModel(
            f"{checkpoint.name} is an original LLaVA checkpoint with {wrong} {said.get(wrong)!r}",
            hint=f"supported: {', '.join(str(one) for one in known[wrong] if one is not None) or 'none'}",
        )


def configuration(checkpoint: Checkpoint) -> Any:
    """An original checkpoint's settings as transformers has them.

    Raises:
        UnsupportedModel: they say what is not understood.
        ModelError: the tower's repo or the tokenizer cannot be read.
    """
    check(checkpoint)
    said = DEFAULTS | (checkpoint.original or {})
    text = AutoConfig.for_model(TEXTS[said["model_type"]])
    names = {*text.to_dict(), *OTHER_ROPE} - NOT_TEXT
    own = {name: value for name, value in said.items() if name in names and value is not None}
    tower = tower_of(checkpoint)
    vision = AutoConfig.from_pretrained(tower.location, revision=tower.commit)
    vision = getattr(vision, "vision_config", vision)
    if vision.model_type != "clip_vision_model":
        raise UnsupportedModel(
            f"{checkpoint.name} is an original LLaVA checkpoint with mm_vision_tower {said['mm_vision_tower']!r}",
            hint="supported: towers of CLIP",
        )
    made = CONFIGS[checkpoint.model_type](
        vision_config=vision,
        text_config=type(text)(**own),
        image_token_index=image_id(checkpoint.location, checkpoint.commit, text.model_type),
        vision_feature_layer=said.get("mm_vision_select_layer", -2),
        vision_feature_select_strategy=STRATEGIES[said["mm_vision_select_feature"]],
        projector_hidden_act=ACTIVATIONS[said["mm_projector_type"]],
        **pinpoints(checkpoint),
    )
    made.dtype = getattr(torch, said.get("torch_dtype") or "float16")
    return made


def fitted(kind: Any, config: Any) -> Any:
    """A class of models with a projector of one layer where the settings say so."""
    if config.projector_hidden_act != "linear":
        return kind

    class Linear(kind):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model.multi_modal_projector.linear_2 = nn.Identity()

    Linear.__name__ = kind.__name__
    return Linear


def with_tower(model: Any, missing: list[str], checkpoint: Checkpoint, placement: Placement) -> list[str]:
    """Fetch a tower that is not among a checkpoint's weights; what is missing after that."""
    module = model.model.vision_tower
    if {TOWER + name for name, _ in module.named_parameters()} - set(missing):
        return missing
    others = [name for name in missing if not name.startswith(TOWER)]
    if not module.config.num_hidden_layers:  # of the language half, which does not look
        return others
    tower, report = loading.read_weights(
        CLIPVisionModel, tower_of(checkpoint), module.config, placement, use_safetensors=None
    )
    model.model.vision_tower = tower
    return others + [TOWER + name for name in loading.names(report["missing_keys"])]
