"""Where the weights and settings of Mini-Gemini are stored, and under which names.

An original checkpoint holds the language model, the projectors and, as training saved them, both towers. The towers'
settings, and their weights where the checkpoint has none, are in folders that its config.json names (`mm_vision_tower`,
`mm_vision_tower_aux`). A folder is looked up as written, then in the checkpoint, then on the hub.
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
from prunesid_cli.models.loading.checkpoint import REINSTALL_HINT, Checkpoint, first_line
from prunesid_cli.models.loading.hub import find_download
from prunesid_cli.models.mini_gemini.model import MGMVisionModel
from prunesid_cli.models.mini_gemini.stored_names import CLIP, CONVNEXT, MINING, StoredNames
from prunesid_cli.types import Placement

TOWER_REPOSITORIES = {
    "clip-vit-large-patch14-336": "openai/clip-vit-large-patch14-336",
    "openclip-convnext-large-d-320-laion2B-s29B-b131K-ft-soup": (
        "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
    ),
}
"""Tower folder as the checkpoints name it -> the repository that it is a copy of."""
SAFETENSORS_FILES = ("model.safetensors", "open_clip_model.safetensors")
PICKLE_HINT = "pickles are not read: load it as training did, and save_pretrained writes safetensors"
CONVERT_HINT = (
    'pickles are not read; in its folder: python -c "import torch; from safetensors.torch import save_file; '
    "save_file({{k: v.contiguous() for k, v in torch.load('{pickle}', weights_only=True).items() "
    "if k.startswith('{prefix}')}}, '{safetensors}')\""
)


class SafetensorsSource:
    """The tensors in the safetensors files of a folder or repository.

    Args:
        location: Folder, or repository on the hub.
        commit: Commit of the repository; None for a folder, or for its main branch.
    """

    def __init__(self, location: str, commit: str | None = None) -> None:
        self.location = location
        self.commit = commit

    @cached_property
    def files(self) -> dict[str, str]:
        """Tensor name -> name of the file that holds it; empty if there are no safetensors."""
        index = self._path("model.safetensors.index.json")
        if index:
            weight_map: dict[str, str] = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            return weight_map
        for file_name in SAFETENSORS_FILES:
            if self._path(file_name):
                return dict.fromkeys(self._open(file_name).keys(), file_name)
        return {}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors by name, each file once."""
        names_by_file, tensors = defaultdict[str, list[str]](list), dict[str, Tensor]()
        for name in names:
            names_by_file[self.files[name]].append(name)
        for file_name, file_names in names_by_file.items():
            file = self._open(file_name)
            tensors |= {name: file.get_tensor(name) for name in file_names}
        return tensors

    def _path(self, file_name: str) -> str | None:
        try:
            path: str | None = cached_file(
                self.location, file_name, revision=self.commit, _raise_exceptions_for_missing_entries=False
            )
        except OSError as error:
            raise ModelError(f"cannot get {self.location}: {first_line(error)}", "put it beside the model") from error
        return path

    def _open(self, file_name: str) -> Any:
        try:
            return safe_open(self._path(file_name), "pt")
        except (OSError, SafetensorError, TypeError) as error:
            raise ModelError(
                f"cannot read {file_name} of {self.location}: {first_line(error)}", REINSTALL_HINT
            ) from error


class ModuleWeights:
    """The stored tensors of one module, by the names that they have in that module.

    Attributes:
        source: Where they are stored.
        stored_names: Name in the module -> stored name; empty if the source does not hold the module.
    """

    def __init__(self, source: SafetensorsSource, names: StoredNames) -> None:
        self.source = source
        self.stored_names = dict[str, str]()
        for stored_name in source.files:
            for prefix, replacement in names.prefixes:
                if stored_name.startswith(prefix):
                    name = replacement + stored_name.removeprefix(prefix)
                    for old, new in names.replacements:
                        name = name.replace(old, new)
                    self.stored_names[name] = stored_name
                    break

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors by their name in the module; names that are not stored are left out."""
        wanted = {name: self.stored_names[name] for name in names if name in self.stored_names}
        tensors = self.source.read(wanted.values())
        return {name: tensors[stored_name] for name, stored_name in wanted.items()}

    def convnext_stages(self) -> tuple[list[int], list[int]]:
        """Read the widths and depths of the stages of a ConvNeXt from its layer scales."""
        blocks = [name.split(".")[1] for name in self.stored_names if name.endswith(".layer_scale_parameter")]
        stages = sorted(set(blocks), key=int)
        scales = self.read(f"stages.{stage}.layers.0.layer_scale_parameter" for stage in stages)
        return [len(scale) for scale in scales.values()], [blocks.count(stage) for stage in stages]

    def load_into(self, module: nn.Module, placement: Placement) -> None:
        """Load the tensors into a module that was built on the meta device. Tensors it has no place for are not read.

        Raises:
            ModelError: Some are missing or have another shape.
        """
        needed = module.state_dict()
        tensors = self.read(needed)
        wrong = sorted(
            name for name, empty in needed.items() if name not in tensors or tensors[name].shape != empty.shape
        )
        if wrong:
            problem = f"{self.source.location} lacks {len(wrong)} of the weights that it needs, first {wrong[0]}"
            raise ModelError(problem, REINSTALL_HINT)
        placed = {name: tensor.to(placement.device, placement.dtype) for name, tensor in tensors.items()}
        module.load_state_dict(placed, assign=True)
        module.eval().requires_grad_(False)


def find_tower(checkpoint: Checkpoint, name: str) -> str:
    """Find the folder or repository of a tower that a checkpoint names.

    Raises:
        ModelError: It is in none of the places described above.
    """
    last = Path(name).name
    for folder in (Path(name), Path(checkpoint.location) / name, Path(checkpoint.location) / last):
        if folder.is_dir():
            return str(folder)
    is_repo = name.count("/") == 1 and not name.startswith((".", "/"))
    if last in TOWER_REPOSITORIES or is_repo:
        repo = TOWER_REPOSITORIES.get(last, name)
        return str(find_download(repo) or repo)
    raise ModelError(
        f"{checkpoint.name} needs the vision tower {name}, which is not here",
        hint=f"put it into a folder {last} in the checkpoint's",
    )


def find_checkpoint_weights(checkpoint: Checkpoint, names: StoredNames) -> ModuleWeights:
    """Find the weights of a module that only the checkpoint itself holds.

    Raises:
        ModelError: The checkpoint has no safetensors.
    """
    source = SafetensorsSource(checkpoint.location, checkpoint.commit)
    if not source.files:
        raise ModelError(f"{checkpoint.name} has no safetensors", PICKLE_HINT)
    return ModuleWeights(source, names)


def find_tower_weights(checkpoint: Checkpoint, name: str, names: StoredNames) -> ModuleWeights:
    """Find the weights of a tower: in the checkpoint, else in the tower's own folder or repository.

    Raises:
        ModelError: There are no safetensors in either.
    """
    weights = ModuleWeights(SafetensorsSource(checkpoint.location, checkpoint.commit), names)
    if not weights.stored_names:
        weights = ModuleWeights(SafetensorsSource(find_tower(checkpoint, name)), names)
    if not weights.stored_names:
        own_prefix, _ = names.prefixes[-1]
        raise ModelError(
            f"there are no safetensors of the vision tower {name} in {weights.source.location}",
            hint=CONVERT_HINT.format(pickle=names.pickle, prefix=own_prefix, safetensors=names.safetensors),
        )
    return weights


def load_mgm_vision_model(checkpoint: Checkpoint, config: Any, clip: Any, placement: Placement) -> MGMVisionModel:
    """Load the weights of the vision half. Layers of CLIP above the one that is read are left out.

    Args:
        checkpoint: The checkpoint.
        config: Its configuration.
        clip: Configuration of its CLIP tower, shortened here to the layers that are read.
        placement: Device, precision and attention implementation.
    """
    layer: int = config.mm_vision_select_layer
    clip.num_hidden_layers = layer if layer >= 0 else clip.num_hidden_layers + 1 + layer
    mining = find_checkpoint_weights(checkpoint, MINING)
    low_resolution = find_tower_weights(checkpoint, config.mm_vision_tower, CLIP)
    high_resolution = find_tower_weights(checkpoint, config.mm_vision_tower_aux, CONVNEXT)
    with torch.device("meta"):
        model = MGMVisionModel(clip, placement.attention, *high_resolution.convnext_stages())
    if placement.device.type == "meta":
        return model
    mining.load_into(model.mining, placement)
    low_resolution.load_into(model.clip, placement)
    high_resolution.load_into(model.vision_tower_aux, placement)
    embeddings = model.clip.embeddings  # the one tensor that no checkpoint has
    embeddings.position_ids = torch.arange(embeddings.num_positions, device=placement.device)[None]
    return model
