"""Where the weights and settings of Mini-Gemini are, and under which names.

An original checkpoint holds the language model, the projectors and, as training saved them, both towers. Settings of
the towers, and their weights where the checkpoint has none, are in folders that its config.json names
(`mm_vision_tower`, `mm_vision_tower_aux`): looked for as written, then in the checkpoint, then on the hub.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from prunesid_cli.errors import ModelError
from prunesid_cli.families.checkpoint import Checkpoint
from prunesid_cli.families.loading import REINSTALL, one_line
from prunesid_cli.families.mgm_model import Towers
from prunesid_cli.types import Placement

HUB = {
    "clip-vit-large-patch14-336": "openai/clip-vit-large-patch14-336",
    "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup": (
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
    ),
}
"""Folders as the checkpoints name them -> the repositories that they are copies of."""
FILES = ("model.safetensors", "open_clip_model.safetensors")
CONVERT = (
    'pickles are not read; in its folder: python -c "import torch; from safetensors.torch import save_file; '
    "save_file({k: v.contiguous() for k, v in torch.load('open_clip_pytorch_model.bin', weights_only=True).items() "
    "if k.startswith('visual.')}, 'open_clip_model.safetensors')\""
)
Names = tuple[tuple[str, str], ...]
CLIP: Names = (("model.vision_tower.vision_tower.vision_model.", ""), ("vision_model.", ""))
CONVNEXT: Names = (("model.vision_tower_aux.vision_", ""), ("visual.trunk.", ""))
MINING: Names = (
    ("model.vlm_uni_query_projector.", "query."),
    ("model.vlm_uni_aux_projector.", "key."),
    ("model.vlm_uni_val_projector.", "value."),
)
PROJECTOR: Names = (("model.mm_projector.", ""),)
"""What the names of a part begin with, in a checkpoint and in the part's own repository -> what to put instead."""
TIMM: Names = (
    ("stem.0.", "stem.patch_embeddings."),
    ("stem.1.", "stem.layernorm."),
    (".blocks.", ".layers."),
    (".downsample.", ".downsampling_layer."),
    (".conv_dw.", ".dwconv."),
    (".norm.", ".layernorm."),
    (".mlp.fc", ".pwconv"),
    (".gamma", ".layer_scale_parameter"),
)
"""timm's names in a ConvNeXt -> those of transformers."""


class Weights:
    """Tensors in the safetensors of a folder or repository, read when they are asked for."""

    def __init__(self, location: str, commit: str | None = None) -> None:
        self.location = location
        self.commit = commit

    @cached_property
    def files(self) -> dict[str, str]:
        """Name of a tensor -> name of its file. Empty where there are no safetensors."""
        index = self._path("model.safetensors.index.json")
        if index:
            found: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            return found
        name = next((one for one in FILES if self._path(one)), None)
        if name is None:
            return {}
        with safe_open(self._path(name), "pt") as file:
            return dict.fromkeys(file.keys(), name)

    def _path(self, name: str) -> str | None:
        path: str | None = cached_file(
            self.location, name, revision=self.commit, _raise_exceptions_for_missing_entries=False
        )
        return path

    def part(self, names: Names) -> dict[str, str]:
        """The tensors of a part: without what their names begin with -> name."""
        found = {}
        for name in self.files:
            start, instead = next(((start, new) for start, new in names if name.startswith(start)), (None, ""))
            if start is not None:
                found[instead + name.removeprefix(start)] = name
        return found

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        by_file, tensors = defaultdict[str, list[str]](list), dict[str, Tensor]()
        for name in names:
            by_file[self.files[name]].append(name)
        for file_name, some in by_file.items():
            try:
                with safe_open(self._path(file_name), "pt") as file:
                    tensors |= {name: file.get_tensor(name) for name in some}
            except (OSError, SafetensorError, TypeError) as error:
                raise ModelError(f"cannot read {file_name} of {self.location}: {one_line(error)}", REINSTALL) from error
        return tensors


def tower_location(checkpoint: Checkpoint, name: str) -> str:
    """The folder or repository of a tower that a checkpoint names."""
    last = Path(name).name
    for folder in (Path(name), Path(checkpoint.location) / name, Path(checkpoint.location) / last):
        if folder.is_dir():
            return str(folder)
    if last in HUB:
        return HUB[last]
    if name.count("/") == 1 and not name.startswith((".", "/")):
        return name
    raise ModelError(
        f"{checkpoint.name} needs the vision tower {name}, which is not here",
        hint=f"put it into a folder {last} in the checkpoint's",
    )


def tower_weights(checkpoint: Checkpoint, name: str, names: Names, hint: str = REINSTALL) -> dict[str, Tensor]:
    """The weights of a tower: those that a checkpoint holds, else those of the tower's own folder or repository."""
    own = Weights(checkpoint.location, checkpoint.commit)
    source = own if own.part(names) else Weights(tower_location(checkpoint, name))
    part = source.part(names)
    if not part:
        raise ModelError(f"there are no safetensors of the vision tower {name} in {source.location}", hint)
    tensors = source.read(part.values())
    return {short: tensors[long] for short, long in part.items()}


def renamed(tensors: Mapping[str, Tensor], pairs: Names) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        for old, new in pairs:
            name = name.replace(old, new)
        found[name] = tensor
    return found


def shape_of(convnext: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
    """Widths and depths of the stages, read from the weights."""
    blocks = [name.split(".")[1] for name in convnext if name.endswith(".dwconv.weight")]
    stages = sorted(set(blocks), key=int)
    widths = [len(convnext[f"stages.{stage}.layers.0.dwconv.weight"]) for stage in stages]
    return widths, [blocks.count(stage) for stage in stages]


def fill(module: nn.Module, tensors: Mapping[str, Tensor], placement: Placement, owner: str) -> None:
    """Put weights into a module made without memory.

    Raises:
        ModelError: some are missing or of another shape. What the module has no place for is left out.
    """
    needed = module.state_dict()
    wrong = [name for name, one in needed.items() if name not in tensors or tensors[name].shape != one.shape]
    if wrong:
        raise ModelError(
            f"{owner} lacks {len(wrong)} of the weights that it needs, first {sorted(wrong)[0]}", REINSTALL
        )
    placed = {name: tensors[name].to(placement.device, placement.dtype) for name in needed}
    module.load_state_dict(placed, assign=True)
    module.eval().requires_grad_(False)


def read_part(checkpoint: Checkpoint, names: Names) -> dict[str, Tensor]:
    """The weights of a part that only the checkpoint itself has."""
    source = Weights(checkpoint.location, checkpoint.commit)
    part = source.part(names)
    tensors = source.read(part.values())
    return {short: tensors[long] for short, long in part.items()}


def load_towers(checkpoint: Checkpoint, config: Any, clip: Any, placement: Placement) -> Towers:
    """The weights of the vision half. Layers of CLIP above the one that is read are left out."""
    layer: int = config.mm_vision_select_layer
    clip.num_hidden_layers = layer if layer >= 0 else clip.num_hidden_layers + 1 + layer
    parts = {
        "vision_tower": tower_weights(checkpoint, config.mm_vision_tower, CLIP),
        "vision_tower_aux": renamed(tower_weights(checkpoint, config.mm_vision_tower_aux, CONVNEXT, CONVERT), TIMM),
        "mining": read_part(checkpoint, MINING),
    }
    with torch.device("meta"):
        model = Towers(clip, placement.attention, *shape_of(parts["vision_tower_aux"]))
    for name, tensors in parts.items():
        module = model.clip if name == "vision_tower" else getattr(model, name)
        fill(module, tensors, placement, checkpoint.name)
    embeddings = model.clip.embeddings  # the one tensor that no checkpoint has
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=placement.device)[None]
    return model
