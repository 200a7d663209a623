"""Initial weights with useful attention heads, which save most of the training of models of this size.

From random weights, a tower this small takes long to learn that patches have neighbours, and a language model even
longer to learn that the word "star" in a question refers to the visual tokens that show one: after 2,000 steps it knew
what is in a picture, but not which colour belongs to which shape.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from prunesid_cli.demo.build import WIDTH
from prunesid_cli.demo.scenes import GRID

POSITION_CHANNELS = 32
"""Channels of the tower's residual stream that initially encode the position of a patch."""
PERIODS = (3, 4, 6, 8, 12, 16, 24, 48)
"""Periods of the position code, in patches."""
MATCHING_LAYERS, FAST_PAIRS = 2, 6
"""Layers of the language model whose first heads attend to similar tokens; and channel pairs of a head that the rotary
position code turns too fast for that (by more than a radian in ten tokens)."""
LOOK_BACK_HEADS, LAG_PAIRS = {4: 1, 5: 2}, 3
"""Heads of the language model that look back, with the number of words; and their channel pairs that distinguish lags.
Slower pairs would weigh words by their share of the common direction more than by their distance."""


@torch.no_grad()
def initialize_language(language: Any, seed: int) -> None:
    """Give an untrained Llama heads that match tokens and heads that look back. All heads copy what they attend to.

    A common direction is added to all word embeddings; visual tokens lack it. In the first layers, heads compare tokens
    in all other directions (keys equal queries), so that a word attends to the visual tokens that resemble it. Two more
    heads of every layer use the common direction only, and attend to the previous word and the one before it.

    Args:
        language: The Llama.
        seed: Seed of the common direction.
    """
    common = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) * language.config.initializer_range
    language.get_input_embeddings().weight += common
    common = common / common.norm()
    for number, layer in enumerate(language.layers):
        attention = layer.self_attn
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
        half = attention.head_dim // 2
        query, key = (projection.weight.view(-1, 2, half, WIDTH) for projection in (attention.q_proj, attention.k_proj))
        if number < MATCHING_LAYERS:
            query -= (query @ common)[..., None] * common
            query[:, :, :FAST_PAIRS] *= 0.2
            query[:, :, FAST_PAIRS:] *= 2.5
            key.copy_(query)
        speed = 10_000.0 ** (-torch.arange(LAG_PAIRS) / half)
        for head, lag in LOOK_BACK_HEADS.items():
            for projection, angle in ((query[head], 0 * speed), (key[head], lag * speed)):
                projection *= 0.2
                projection[0, :LAG_PAIRS] += 0.6 * angle.cos()[:, None] * common
                projection[1, :LAG_PAIRS] += 0.6 * angle.sin()[:, None] * common


@torch.no_grad()
def add_position_channels(heads: Any) -> None:
    """Clear the eight least important channels of a trained tower, and use them for the position of a patch.

    A tower that was not trained on positions overwrites them within one layer (the error of a linear probe is 3.4
    patches after the first layer, and 5 after the last). No other weights write to these channels at first, so the
    position reaches the projector. `heads.centre` starts as the linear map that reads it.

    Args:
        heads: A `tower.Heads` with a trained tower.
    """
    tower = heads.tower
    writers = [tower.embeddings.patch_embedding.weight.flatten(1)]
    for layer in tower.encoder.layers[:-1]:
        writers += [layer.self_attn.out_proj.weight, layer.mlp.fc2.weight]
    energy = torch.stack([writer.square().sum(1) for writer in writers]).sum(0)
    channels = energy.argsort()[:8].sort().values
    for writer in writers:
        writer[channels] = 0
    for layer in tower.encoder.layers[:-1]:
        layer.self_attn.out_proj.bias[channels] = 0
        layer.mlp.fc2.bias[channels] = 0
        for reader in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.fc1):
            reader.weight[:, channels] = 0
    patch = torch.arange(GRID * GRID)
    table = tower.embeddings.position_embedding.weight
    table[:, channels] = 0
    table[1:, channels] = 6 * torch.cat([_place_code(patch % GRID), _place_code(patch // GRID)], 1)
    for norm in (tower.pre_layrnorm, heads.norm):
        norm.weight[channels], norm.bias[channels] = 1.0, 0.0
    heads.patch.weight[:, channels] = 0
    bins = heads.centre.out_features // 2
    code = 8 * _place_code((torch.arange(bins) + 0.5) * GRID / bins - 0.5)
    heads.centre.weight.zero_()
    heads.centre.bias.zero_()
    heads.centre.weight[:bins, channels[:4]] = code
    heads.centre.weight[bins:, channels[4:]] = code


def _place_code(coordinate: Tensor) -> Tensor:
    """Coordinates in patches [M] -> code [M, 4]: half a turn over the picture, and one and a half."""
    angle = coordinate[:, None] * (2 * math.pi / torch.tensor([48.0, 16.0]))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


@torch.no_grad()
def initialize_tower(tower: Any, patches: Tensor, generator: torch.Generator) -> None:
    """Give an untrained tower whitened patch filters, 2-D sine positions, and heads that attend to neighbours.

    Args:
        tower: The tower.
        patches: Sample patches, normalised [M, 3 * 14 * 14].
        generator: Draws a rotation of the filters.
    """
    content = WIDTH - POSITION_CHANNELS
    mean = patches.mean(0)
    scale, basis = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    scale, basis = scale[-content:], basis[:, -content:]
    rotation = torch.linalg.qr(torch.randn(content, content, generator=generator))[0]
    filters = rotation @ (basis / (scale + 0.02 * scale.mean()).sqrt()).T
    embeddings = tower.embeddings
    kernel = embeddings.patch_embedding.weight
    kernel.zero_()
    kernel[:content] = filters.view(content, *kernel.shape[1:])
    table = embeddings.position_embedding.weight
    table.zero_()
    table[1:, :content] = -(filters @ mean)
    table[1:, content:] = _position_code()
    for layer, offsets in zip(tower.encoder.layers, HEAD_OFFSETS, strict=False):
        for head, offset in enumerate(offsets):
            _attend_to(layer.self_attn, head, offset)


HEAD_OFFSETS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2), (-1, 1), (1, -1)),
    ((-3, 0), (3, 0), (0, -3), (0, 3)),
)
"""Offset, in patches to the right and down, of the patch that each head of the first layers initially attends to."""


def _position_code() -> Tensor:
    """Sine and cosine for each axis and period [576, 32]."""
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    angles = torch.stack([axis.flatten()[:, None] * (2 * math.pi / torch.tensor(PERIODS)) for axis in (x, y)], 1)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def _attend_to(attention: Any, head: int, offset: tuple[int, int]) -> None:
    """Set a head's query to the position code rotated by `offset`, and its key to the plain code."""
    dim = attention.head_dim
    rows, columns = slice(head * dim, head * dim + POSITION_CHANNELS), slice(WIDTH - POSITION_CHANNELS, WIDTH)
    rotation = torch.zeros(POSITION_CHANNELS, POSITION_CHANNELS)
    for axis, step in enumerate(offset):
        for number, period in enumerate(PERIODS):
            angle = 2 * math.pi * step / period
            at = 2 * (axis * len(PERIODS) + number)
            rotation[at, at], rotation[at, at + 1] = math.cos(angle), math.sin(angle)
            rotation[at + 1, at], rotation[at + 1, at + 1] = -math.sin(angle), math.cos(angle)
    sharpness = 2.2
    for projection, code in ((attention.q_proj, rotation), (attention.k_proj, torch.eye(POSITION_CHANNELS))):
        projection.weight[rows] *= 0.3
        projection.weight[rows, columns] = sharpness * code
