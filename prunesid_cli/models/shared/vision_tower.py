"""Vision towers that several families have: where their layers are, whether there is a CLS, what importance they offer.

Features are hidden states as the layers leave them, before any norm of the tower's own; those of several layers are
joined, as LLaVA's projectors read them. Layers above the last of them are neither loaded nor run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.pixtral.modeling_pixtral import apply_rotary_pos_emb

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.shared.attention_saliency import (
    QueryKeyProjection,
    project_heads,
    project_query_key,
    record_cls_attention,
    record_received_attention,
)


def _rotated(module: Any, states: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor, float]:
    """`Projected` for Pixtral."""
    query, key = project_heads(module, "q", states), project_heads(module, "k", states)
    return *apply_rotary_pos_emb(query, key, *given["position_embeddings"], unsqueeze_dim=0), module.scaling


@dataclass(frozen=True)
class TowerType:
    """layers, attention: where they are in the tower and in a layer; projected: for importance without a CLS."""

    layers: str
    attention: str
    has_cls: bool
    projected: QueryKeyProjection = project_query_key


TOWER_TYPES = {
    "clip_vision_model": TowerType("encoder.layers", "self_attn", has_cls=True),
    "siglip_vision_model": TowerType("encoder.layers", "self_attn", has_cls=False),
    "pixtral": TowerType("transformer.layers", "attention", has_cls=False, projected=_rotated),
}
"""model_type of the vision config -> where things are."""


def tower_type(config: Any) -> str:
    """The type of a model's tower."""
    return str(getattr(config.vision_config, "model_type", "none"))


def check_tower(checkpoint: Checkpoint, config: Any, known: Sequence[str]) -> None:
    """Refuse a tower, and ways to read one, that are not known."""
    kind, layers, depth = tower_type(config), _numbers(config), config.vision_config.num_hidden_layers
    if kind not in known:
        raise UnsupportedModel(
            f"{checkpoint.name} has a vision tower of type {kind!r}", hint=f"supported towers: {', '.join(known)}"
        )
    if not layers or not all(0 < layer <= depth for layer in layers):
        raise UnsupportedModel(
            f"{checkpoint.name} reads features of layers {config.vision_feature_layer} of {depth}",
            hint="check vision_feature_layer in its config.json",
        )
    if config.vision_feature_select_strategy == "default" and not TOWER_TYPES[kind].has_cls:
        raise UnsupportedModel(
            f"{checkpoint.name} leaves out the first patch of each picture, for its tower {kind!r} has no CLS token",
            hint='set "vision_feature_select_strategy": "full" in its config.json and processor_config.json',
        )


def _numbers(config: Any) -> list[int]:
    """Of the layers whose outputs are read, counted from 1."""
    named, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    return [layer if layer >= 0 else depth + 1 + layer for layer in ([named] if isinstance(named, int) else named)]


def trim_tower(config: Any) -> tuple[int, ...]:
    """Shorten a model's tower to the layers that are read; their numbers, counted from 1."""
    layers = tuple(_numbers(config))
    config.vision_config.num_hidden_layers = max(layers)
    config.vision_config.vision_use_head = False  # SigLIP's; in transformers 5.17 there is one where nothing is said
    return layers


class VisionTower:
    """A trimmed tower with a reading of its features and of the importance of its patches."""

    def __init__(self, kind: str, module: Any, layers: Sequence[int]) -> None:
        self.type = TOWER_TYPES[kind]
        self.module = module
        self.read = tuple(layers)
        self.layers: nn.ModuleList = attrgetter(self.type.layers)(getattr(module, "vision_model", module))

    def __call__(self, pixels: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
        """Pixels [B, 3, H, W] -> features [B, N, C], CLS first where there is one, and saliency of the rest [B, N]."""
        attention = getattr(self.layers[-1], self.type.attention)
        importance = (
            record_cls_attention(attention)
            if self.type.has_cls
            else record_received_attention(attention, self.type.projected)
        )
        with self._outputs() as outputs, importance as rows:
            self.module(pixels, **given)
        return torch.cat([outputs[number] for number in self.read], -1), rows[0]

    @contextmanager
    def _outputs(self) -> Iterator[dict[int, Tensor]]:
        """While open, what the layers that are read put out, by number."""
        outputs: dict[int, Tensor] = {}

        def keep(number: int) -> Any:
            return lambda module, args, output: outputs.update({number: output})

        hooks = [self.layers[number - 1].register_forward_hook(keep(number)) for number in set(self.read)]
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()
