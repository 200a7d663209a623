"""Vision towers that several families share: CLIP, SigLIP and Pixtral.

Features are the hidden states after a layer, before any final norm of the tower. If a configuration names several
layers, their features are concatenated, as LLaVA's projectors read them. Layers above the last of them are neither
loaded nor run.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.shared.registered_attention import record_attention


@dataclass(frozen=True)
class TowerType:
    """Where a type of tower has its parts.

    Attributes:
        layers: Attribute path from the tower to the list of its layers.
        attention: Attribute of a layer that is its attention module.
        has_cls: Whether the first token is a CLS token.
    """

    layers: str
    attention: str
    has_cls: bool


TOWER_TYPES = {
    "clip_vision_model": TowerType("encoder.layers", "self_attn", has_cls=True),
    "siglip_vision_model": TowerType("encoder.layers", "self_attn", has_cls=False),
    "pixtral": TowerType("transformer.layers", "attention", has_cls=False),
}
"""model_type of the vision config -> its parts."""


def tower_type(config: Any) -> str:
    """The `model_type` of a model's vision config."""
    return str(getattr(config.vision_config, "model_type", "none"))


def check_tower(checkpoint: Checkpoint, config: Any, supported: Sequence[str]) -> None:
    """Check that a model's tower, and the way its features are read, are supported.

    Args:
        checkpoint: Named in the errors.
        config: The model's configuration.
        supported: Keys of `TOWER_TYPES` that the family supports.

    Raises:
        UnsupportedModel: They are not.
    """
    name, layers, depth = tower_type(config), _feature_layers(config), config.vision_config.num_hidden_layers
    if name not in supported:
        raise UnsupportedModel(
            f"{checkpoint.name} has a vision tower of type {name!r}", hint=f"supported towers: {', '.join(supported)}"
        )
    if not layers or not all(0 < layer <= depth for layer in layers):
        raise UnsupportedModel(
            f"{checkpoint.name} reads features of layers {config.vision_feature_layer} of {depth}",
            hint="check vision_feature_layer in its config.json",
        )
    if config.vision_feature_select_strategy == "default" and not TOWER_TYPES[name].has_cls:
        raise UnsupportedModel(
            f"{checkpoint.name} leaves out the first patch of each image, but its tower {name!r} has no CLS token",
            hint='set "vision_feature_select_strategy": "full" in its config.json and processor_config.json',
        )


def trim_tower(config: Any) -> tuple[int, ...]:
    """Shorten the tower in a model's configuration to the layers whose features are read.

    Args:
        config: The model's configuration, which is changed.

    Returns:
        The numbers of the layers whose features are read, counted from 1.
    """
    layers = _feature_layers(config)
    config.vision_config.num_hidden_layers = max(layers)
    # SigLIP's pooling head is not read. transformers 5.17 makes one if the setting is missing.
    config.vision_config.vision_use_head = False
    return layers


def _feature_layers(config: Any) -> tuple[int, ...]:
    """`vision_feature_layer` as numbers counted from 1; negative ones in the configuration count from the end."""
    layers, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    layers = [layers] if isinstance(layers, int) else layers
    return tuple(layer if layer >= 0 else depth + 1 + layer for layer in layers)


class VisionTower:
    """A trimmed tower that returns features and the saliency of its patches.

    Args:
        type_name: A key of `TOWER_TYPES`.
        module: The tower.
        feature_layers: The layers whose features are read, counted from 1; the last layer of the tower is one of them.
    """

    def __init__(self, type_name: str, module: Any, feature_layers: Sequence[int]) -> None:
        self.type = TOWER_TYPES[type_name]
        self.module = module
        self.feature_layers = tuple(feature_layers)
        self.layers: nn.ModuleList = attrgetter(self.type.layers)(getattr(module, "vision_model", module))

    def __call__(self, pixels: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Run the tower.

        Args:
            pixels: Normalised images [B, 3, H, W].
            kwargs: More arguments of the tower.

        Returns:
            Features [B, N, C], including CLS as the first token if there is one; saliency of the patches [B, N],
            without CLS.
        """
        outputs: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            calls = hooks.enter_context(record_attention([getattr(self.layers[-1], self.type.attention)]))
            for number in set(self.feature_layers):

                def keep(module: Any, args: Any, output: Tensor, number: int = number) -> None:
                    outputs[number] = output

                hooks.enter_context(self.layers[number - 1].register_forward_hook(keep))
            self.module(pixels, **kwargs)
        (call,) = calls
        saliency = call.of_first()[:, 1:] if self.type.has_cls else call.received()
        return torch.cat([outputs[number] for number in self.feature_layers], -1), saliency
