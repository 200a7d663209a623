"""CLIP and SigLIP towers of the LLaVA-NeXT kinds: features of one layer, or of several joined along channels.

Layers above the deepest that is read are neither loaded nor run, nor is the pooling head of SigLIP.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.families.checkpoint import Checkpoint
from prunesid_cli.families.saliency import cls_attention, received_attention

STRATEGIES = {"clip_vision_model": "default", "siglip_vision_model": "full"}
"""Of each tower, the `vision_feature_select_strategy` that leaves its patches, all of them and no CLS."""


def check_tower(checkpoint: Checkpoint, config: Any) -> None:
    """Refuse what `Tower` cannot read."""
    kind = getattr(config.vision_config, "model_type", "none")
    if kind not in STRATEGIES:
        raise UnsupportedModel(
            f"{checkpoint.name} has a vision tower of type {kind!r}",
            hint="models of this type are supported with a CLIP or SigLIP tower",
        )
    strategy, depth = config.vision_feature_select_strategy, config.vision_config.num_hidden_layers
    if strategy != STRATEGIES[kind]:
        raise UnsupportedModel(
            f"{checkpoint.name} reads a tower of type {kind!r} by the strategy {strategy!r}, which leaves no grid",
            hint=f"with this tower, the strategy is {STRATEGIES[kind]!r}",
        )
    if not all(1 <= layer <= depth for layer in depths(config)):
        raise UnsupportedModel(
            f"{checkpoint.name} reads layers {config.vision_feature_layer} of a tower of {depth}",
            hint="features are read from the output of a layer",
        )


def depths(config: Any) -> tuple[int, ...]:
    """How many layers of the tower run before each of the features that are joined."""
    layers, depth = config.vision_feature_layer, config.vision_config.num_hidden_layers
    several = [layers] if isinstance(layers, int) else layers
    return tuple(layer if layer >= 0 else depth + 1 + layer for layer in several)


def cut_tower(config: Any, depth: int) -> None:
    """Leave so many layers of the tower in a configuration, and no head."""
    config.vision_config.num_hidden_layers = depth
    config.vision_config.vision_use_head = False


@dataclass(frozen=True)
class Seen:
    """What a tower makes of B squares of R rows and columns of patches.

    features [B, R, R, C]; saliency [B, R, R]; summary [B, C], the CLS, None where there is none
    """

    features: Tensor
    saliency: Tensor
    summary: Tensor | None

    def split(self, counts: Sequence[int]) -> list[Seen]:
        """The squares in groups of so many each."""
        summaries = self.summary.split(counts) if self.summary is not None else [None] * len(counts)
        return list(map(Seen, self.features.split(counts), self.saliency.split(counts), summaries))


class Tower:
    def __init__(self, module: Any, read: Sequence[int]) -> None:
        """read: as `depths` gives them; the module ends with the deepest."""
        self.module = module
        self.has_cls = module.config.model_type == "clip_vision_model"
        self.layers = getattr(module, "vision_model", module).encoder.layers
        self.read = read

    def __call__(self, squares: Tensor) -> Seen:
        """Pixels [B, 3, H, W] -> patches at the cut; saliency is that of the deepest layer read."""
        attention = cls_attention if self.has_cls else received_attention
        with attention(self.layers[-1].self_attn) as rows, outputs([self.layers[d - 1] for d in self.read]) as states:
            self.module(squares)
        joined = torch.cat([states[self.layers[d - 1]] for d in self.read], -1)
        raster = (math.isqrt(rows[0].shape[1]),) * 2
        patches = joined[:, int(self.has_cls) :].unflatten(1, raster)
        return Seen(patches, rows[0].unflatten(1, raster), joined[:, 0] if self.has_cls else None)


@contextmanager
def outputs(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """While open, what each module returned last."""
    found: dict[nn.Module, Tensor] = {}
    hooks = [module.register_forward_hook(lambda one, _, output: found.update({one: output})) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
