"""Where the weights and settings of Mini-Gemini are, and under which names.

An original checkpoint holds the language model, the projectors and, as training saved them, both towers. Settings of
the towers, and their weights where the checkpoint has none, are in folders that its config.json names
(`mm_vision_tower`, `mm_vision_tower_aux`): looked for as written, then in the checkpoint, then on the hub.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from prunesid_cli.errors import ModelError
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import REINSTALL, one_line
from prunesid_cli.models.mini_gemini.model import Towers
from prunesid_cli.types import Placement

HUB = {
    "clip-vit-large-patch14-336": "openai/clip-vit-large-patch14-336",
    "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup": (
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
    ),
}
"""Folders as the checkpoints name them -> the repositories that they are copies of."""
OPEN_CLIP = "open_clip_pytorch_model.bin"
FILES = ("model.safetensors", "open_clip_model.safetensors")
PICKLES = "pickles are not read: load it as training did, and save_pretrained writes safetensors"
CONVERT = (
    'pickles are not read; in its folder: python -c "import torch; from safetensors.torch import save_file; '
    "save_file({{k: v.contiguous() for k, v in torch.load('{0}', weights_only=True).items() "
    "if k.startswith('{1}')}}, '{2}')\""
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
    """The tensors in the safetensors of a folder or repository."""

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
        return dict.fromkeys(self._open(name).keys(), name) if name else {}

    def _path(self, name: str) -> str | None:
        try:
            path: str | None = cached_file(
                self.location, name, revision=self.commit, _raise_exceptions_for_missing_entries=False
            )
        except OSError as error:
            raise ModelError(f"cannot get {self.location}: {one_line(error)}", "put it beside the model") from error
        return path

    def _open(self, name: str) -> Any:
        try:
            return safe_open(self._path(name), "pt")
        except (OSError, SafetensorError, TypeError) as error:
            raise ModelError(f"cannot read {name} of {self.location}: {one_line(error)}", REINSTALL) from error

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        by_file, tensors = defaultdict[str, list[str]](list), dict[str, Tensor]()
        for name in names:
            by_file[self.files[name]].append(name)
        for file_name, some in by_file.items():
            file = self._open(file_name)
            tensors |= {name: file.get_tensor(name) for name in some}
        return tensors


class Part:
    """The tensors of one module, by the names that they have there."""

    def __init__(self, source: Weights, starts: Names, others: Names = ()) -> None:
        self.source = source
        self.stored = dict[str, str]()
        for name in source.files:
            start, instead = next(((start, new) for start, new in starts if name.startswith(start)), (None, ""))
            if start is not None:
                self.stored[_renamed(instead + name.removeprefix(start), others)] = name

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of them that there are."""
        wanted = {name: self.stored[name] for name in names if name in self.stored}
        tensors = self.source.read(wanted.values())
        return {name: tensors[stored] for name, stored in wanted.items()}

    def stages(self) -> tuple[list[int], list[int]]:
        """Of a ConvNeXt: widths and depths of its stages."""
        blocks = [name.split(".")[1] for name in self.stored if name.endswith(".layer_scale_parameter")]
        stages = sorted(set(blocks), key=int)
        first = self.read(f"stages.{stage}.layers.0.layer_scale_parameter" for stage in stages)
        return [len(one) for one in first.values()], [blocks.count(stage) for stage in stages]

    def fill(self, module: nn.Module, placement: Placement) -> None:
        """Put them into a module made without memory; those that it has no place for are not read.

        Raises:
            ModelError: some are missing or of another shape.
        """
        needed = module.state_dict()
        tensors = self.read(needed)
        wrong = sorted(n for n, one in needed.items() if n not in tensors or tensors[n].shape != one.shape)
        if wrong:
            problem = f"{self.source.location} lacks {len(wrong)} of the weights that it needs, first {wrong[0]}"
            raise ModelError(problem, REINSTALL)
        placed = {name: one.to(placement.device, placement.dtype) for name, one in tensors.items()}
        module.load_state_dict(placed, assign=True)
        module.eval().requires_grad_(False)


def _renamed(name: str, pairs: Names) -> str:
    for old, new in pairs:
        name = name.replace(old, new)
    return name


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


def own_part(checkpoint: Checkpoint, starts: Names) -> Part:
    """What only the checkpoint itself has."""
    source = Weights(checkpoint.location, checkpoint.commit)
    if not source.files:
        raise ModelError(f"{checkpoint.name} has no safetensors", PICKLES)
    return Part(source, starts)


def tower_part(checkpoint: Checkpoint, name: str, starts: Names, others: Names = ()) -> Part:
    """The weights of a tower: those that a checkpoint holds, else those of the tower's own folder or repository."""
    part = Part(Weights(checkpoint.location, checkpoint.commit), starts, others)
    if not part.stored:
        part = Part(Weights(tower_location(checkpoint, name)), starts, others)
    if not part.stored:
        is_clip = starts is CLIP
        raise ModelError(
            f"there are no safetensors of the vision tower {name} in {part.source.location}",
            hint=CONVERT.format("pytorch_model.bin" if is_clip else OPEN_CLIP, starts[-1][0], FILES[not is_clip]),
        )
    return part


def load_towers(checkpoint: Checkpoint, config: Any, clip: Any, placement: Placement) -> Towers:
    """The weights of the vision half. Layers of CLIP above the one that is read are left out."""
    layer: int = config.mm_vision_select_layer
    clip.num_hidden_layers = layer if layer >= 0 else clip.num_hidden_layers + 1 + layer
    mining = own_part(checkpoint, MINING)
    low = tower_part(checkpoint, config.mm_vision_tower, CLIP)
    high = tower_part(checkpoint, config.mm_vision_tower_aux, CONVNEXT, TIMM)
    with torch.device("meta"):
        model = Towers(clip, placement.attention, *high.stages())
    for part, module in ((mining, model.mining), (low, model.clip), (high, model.vision_tower_aux)):
        part.fill(module, placement)
    embeddings = model.clip.embeddings  # the one tensor that no checkpoint has
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=placement.device)[None]
    return model
