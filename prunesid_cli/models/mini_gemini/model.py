"""What Mini-Gemini has and transformers has not, built of the parts that it has (arXiv 2403.18814, Sec. 3).

Two towers look at a square picture. CLIP sees it small and gives N rows; ConvNeXt sees it large, and the maps of all
its stages are brought to the size of the first and joined by channel. Each CLIP row is the query of an attention over
the M x M positions of the large map that show its own patch, and what it finds there is added to it.
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
    "": (LlamaConfig, LlamaForCausalLM),  # Vicuna, Llama 3, Yi
    "_gemma": (GemmaConfig, GemmaForCausalLM),
    "_mixtral": (MixtralConfig, MixtralForCausalLM),
}
"""What follows `mgm` or `mini_gemini`, its name before April 2024, in a model_type -> what the language model is."""
KINDS = {name + end: kind for name in ("mgm", "mini_gemini") for end, kind in LANGUAGE_MODELS.items()}
for _name, (_base, _) in KINDS.items():
    AutoConfig.register(_name, type(f"{_base.__name__}Of{_name}", (_base,), {"model_type": _name}), exist_ok=True)
STRIDE = 4
"""Pixels of a picture to one position of the first map of a ConvNeXt."""


class HighResolution(nn.Module):
    """ConvNeXt without its head: pixels [B, 3, H, W] -> maps of all stages, joined [B, E, H / 4, W / 4]."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        config = ConvNextConfig(
            hidden_sizes=list(widths),
            depths=list(depths),
            num_stages=len(widths),
            patch_size=STRIDE,
            layer_scale_init_value=1.0,  # any that is not 0: it is in the weights
        )
        whole = ConvNextModel(config)
        self.stem, self.stages = whole.embeddings, whole.encoder.stages

    def forward(self, pixels: Tensor) -> Tensor:
        states, maps = self.stem(pixels), list[Tensor]()
        for stage in self.stages:
            states = stage(states)
            maps.append(states)
        return torch.cat([maps[0], *(resized(one, maps[0].shape[-2:]) for one in maps[1:])], 1)


class Mining(nn.Module):
    """Patch info mining (eq. 1): rows [B, N, C] and maps [B, E, H, W] of the same square -> rows [B, N, C]."""

    def __init__(self, width: int, width_of_maps: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (
            nn.Sequential(nn.LayerNorm(one), nn.Linear(one, width)) for one in (width, width_of_maps, width_of_maps)
        )

    def forward(self, rows: Tensor, maps: Tensor) -> Tensor:
        side = math.isqrt(rows.shape[1])
        # [B, E, side, M, side, M] -> [B, N, M * M, E]
        patches = maps.unflatten(3, (side, -1)).unflatten(2, (side, -1)).permute(0, 2, 4, 3, 5, 1)
        patches = patches.flatten(3, 4).flatten(1, 2)
        queries = self.query(rows)[:, :, None]
        found = functional.scaled_dot_product_attention(queries, self.key(patches), self.value(patches))
        return rows + found[:, :, 0]


class Towers(nn.Module):
    """The vision half: CLIP up to the layer that is read, ConvNeXt, and what joins them."""

    def __init__(self, clip: Any, attention: str, widths: Sequence[int], depths: Sequence[int]) -> None:
        super().__init__()
        self.vision_tower = AutoModel.from_config(clip, attn_implementation=attention)
        self.vision_tower_aux = HighResolution(widths, depths)
        self.mining = Mining(clip.hidden_size, sum(widths))

    @property
    def clip(self) -> Any:
        """The module that holds embeddings and encoder, wherever this transformers keeps it."""
        return getattr(self.vision_tower, "vision_model", self.vision_tower)


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """[B, E, H, W] -> [B, E, *size], bilinear, in fp32."""
    scaled = functional.interpolate(maps.float(), size=tuple(size), mode="bilinear", align_corners=False)
    return scaled.to(maps.dtype)


def tiles(squares: Tensor, grid: int) -> Tensor:
    """[B, E, H, W] -> [B, grid * grid, E, H / grid, W / grid], row by row."""
    cut = squares.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))
    return cut.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def views(squares: Tensor, grid: int, has_whole: bool) -> Tensor:
    """[B, E, H, W] -> [B, K, E, H / grid, W / grid]: the whole, as small as a tile, if asked for; then the tiles."""
    parts = [resized(squares, [side // grid for side in squares.shape[-2:]])[:, None]] if has_whole else []
    return torch.cat([*parts, tiles(squares, grid)], 1)


def projector(kind: str, width: int, out: int) -> nn.Module:
    """`linear`, or `mlpNx_gelu`: N linear layers with GELU between them."""
    found = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if kind == "linear":
        return nn.Linear(width, out)
    if not found:
        raise UnsupportedModel(f"no projector of type {kind!r}", hint="Mini-Gemini is supported with mlp2x_gelu")
    more = [layer for _ in range(int(found[1]) - 1) for layer in (nn.GELU(), nn.Linear(out, out))]
    return nn.Sequential(nn.Linear(width, out), *more)
