"""The modules of Mini-Gemini that transformers lacks, built from modules that it has (arXiv 2403.18814, Sec. 3).

Two towers see one square image. CLIP sees it at low resolution and gives N patches. ConvNeXt sees it at high
resolution, and the maps of all its stages are resized to the first one and concatenated by channel. Each CLIP patch is
the query of an attention over the M x M map positions that show the same part of the image; the result is added to it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModel,
    ConvNextConfig,
    ConvNextModel,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from prunesid_cli.errors import UnsupportedModel

LANGUAGE_MODELS: dict[str, tuple[Any, Any]] = {
    name + suffix: classes
    for name in ("mgm", "mini_gemini")  # the second is the name from before April 2024
    for suffix, classes in {
        "": (LlamaConfig, LlamaForCausalLM),  # Vicuna, Llama 3, Yi
        "_gemma": (GemmaConfig, GemmaForCausalLM),
        "_mixtral": (MixtralConfig, MixtralForCausalLM),
    }.items()
}
"""model_type of config.json -> configuration and model class of the language model."""
for _model_type, (_base, _) in LANGUAGE_MODELS.items():
    _config_class = type(f"{_base.__name__}Of{_model_type}", (_base,), {"model_type": _model_type})
    AutoConfig.register(_model_type, _config_class, exist_ok=True)
CONVNEXT_STRIDE = 4
"""Image pixels per position of ConvNeXt's first map, along each side."""


class HighResolutionTower(nn.Module):
    """ConvNeXt without its head.

    Args:
        widths: Channels of each stage.
        depths: Number of blocks of each stage.
    """

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        config = ConvNextConfig(
            hidden_sizes=list(widths),
            depths=list(depths),
            num_stages=len(widths),
            patch_size=CONVNEXT_STRIDE,
            layer_scale_init_value=1.0,  # any value but 0, which would leave the parameter out; the weights replace it
        )
        convnext = ConvNextModel(config)
        self.stem, self.stages = convnext.embeddings, convnext.encoder.stages

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] -> the maps of all stages, concatenated [B, E, H / 4, W / 4]."""
        states, maps = self.stem(pixels), list[Tensor]()
        for stage in self.stages:
            states = stage(states)
            maps.append(states)
        size = maps[0].shape[-2:]
        return torch.cat([maps[0], *(resize_bilinear(later, size) for later in maps[1:])], 1)


class PatchInfoMining(nn.Module):
    """Patch info mining (eq. 1): attention from each CLIP patch to its own part of the high-resolution map.

    Args:
        width: C, channels of a CLIP patch.
        map_width: E, channels of the map.
    """

    def __init__(self, width: int, map_width: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.key = nn.Sequential(nn.LayerNorm(map_width), nn.Linear(map_width, width))
        self.value = nn.Sequential(nn.LayerNorm(map_width), nn.Linear(map_width, width))

    def forward(self, patches: Tensor, maps: Tensor) -> Tensor:
        """Patches [B, N, C] and maps [B, E, H, W] of the same square -> patches with details [B, N, C]."""
        side = math.isqrt(patches.shape[1])
        # [B, E, side, M, side, M] -> [B, N, M * M, E]
        details = maps.unflatten(3, (side, -1)).unflatten(2, (side, -1)).permute(0, 2, 4, 3, 5, 1)
        details = details.flatten(3, 4).flatten(1, 2)
        queries = self.query(patches)[:, :, None]
        mined = functional.scaled_dot_product_attention(queries, self.key(details), self.value(details))
        return patches + mined[:, :, 0]


class MGMVisionModel(nn.Module):
    """CLIP up to the layer that is read, ConvNeXt, and the attention that joins them.

    Args:
        clip: Configuration of CLIP, shortened to the layers that are loaded.
        attention: Attention implementation of CLIP; None lets transformers choose.
        widths: Channels of each ConvNeXt stage.
        depths: Number of blocks of each ConvNeXt stage.
    """

    def __init__(self, clip: Any, attention: Any, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.vision_tower = AutoModel.from_config(clip, attn_implementation=attention)
        self.vision_tower_aux = HighResolutionTower(widths, depths)
        self.mining = PatchInfoMining(clip.hidden_size, sum(widths))

    @property
    def clip(self) -> Any:
        """The module that holds embeddings and encoder. Its place depends on the version of transformers."""
        return getattr(self.vision_tower, "vision_model", self.vision_tower)


def resize_bilinear(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps [B, E, H, W] -> [B, E, *size], interpolated in fp32."""
    resized = functional.interpolate(maps.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return resized.to(maps.dtype)


def split_views(maps: Tensor, grid: int, has_global_view: bool) -> Tensor:
    """Split images or maps of images into the views that CLIP sees.

    Args:
        maps: [B, E, H, W].
        grid: Tiles along each side.
        has_global_view: Whether the whole, resized to the size of a tile, comes before the tiles.

    Returns:
        K views of each, tiles row by row: [B, K, E, H / grid, W / grid].
    """
    views = [maps.unflatten(3, (grid, -1)).unflatten(2, (grid, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)]
    if has_global_view:
        views.insert(0, resize_bilinear(maps, [side // grid for side in maps.shape[-2:]])[:, None])
    return torch.cat(views, 1)


def build_projector(kind: str, width: int, out_width: int) -> nn.Module:
    """Build the projector that `mm_projector_type` names.

    Args:
        kind: `linear`, or `mlpNx_gelu` for N linear layers with GELU between them.
        width: Channels of a visual token.
        out_width: Width of the language model.

    Raises:
        UnsupportedModel: The type is another one.
    """
    if kind == "linear":
        return nn.Linear(width, out_width)
    mlp = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if not mlp:
        raise UnsupportedModel(f"no projector of type {kind!r}", hint="Mini-Gemini is supported with mlp2x_gelu")
    layers: list[nn.Module] = [nn.Linear(width, out_width)]
    for _ in range(int(mlp[1]) - 1):
        layers += [nn.GELU(), nn.Linear(out_width, out_width)]
    return nn.Sequential(*layers)
