"""The names of Mini-Gemini's tensors in its original checkpoints and in the repositories of its towers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StoredNames:
    """How the tensors of a module are named where they are stored.

    Attributes:
        prefixes: Stored prefix -> its replacement. The prefix in a whole checkpoint comes first, then the prefix in the
            tower's own repository.
        replacements: Substrings of a name -> what to put instead, applied in this order after the prefix is replaced.
        pickle, safetensors: Weight files of the tower's own repository; empty for modules that have none.
    """

    prefixes: tuple[tuple[str, str], ...]
    replacements: tuple[tuple[str, str], ...] = ()
    pickle: str = ""
    safetensors: str = ""


CLIP = StoredNames(
    prefixes=(("model.vision_tower.vision_tower.vision_model.", ""), ("vision_model.", "")),
    pickle="pytorch_model.bin",
    safetensors="model.safetensors",
)
CONVNEXT = StoredNames(
    prefixes=(("model.vision_tower_aux.vision_", ""), ("visual.trunk.", "")),
    replacements=(  # timm's names -> those of transformers
        ("stem.0.", "stem.patch_embeddings."),
        ("stem.1.", "stem.layernorm."),
        (".blocks.", ".layers."),
        (".downsample.", ".downsampling_layer."),
        (".conv_dw.", ".dwconv."),
        (".norm.", ".layernorm."),
        (".mlp.fc", ".pwconv"),
        (".gamma", ".layer_scale_parameter"),
    ),
    pickle="open_clip_pytorch_model.bin",
    safetensors="open_clip_model.safetensors",
)
MINING = StoredNames(
    prefixes=(
        ("model.vlm_uni_query_projector.", "query."),
        ("model.vlm_uni_aux_projector.", "key."),
        ("model.vlm_uni_val_projector.", "value."),
    )
)
PROJECTOR = StoredNames(prefixes=(("model.mm_projector.", ""),))
