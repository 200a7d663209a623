"""How towers and language models of this size begin: already looking around, which saves most of their training.

From random weights, a tower this small needs long to find that patches have neighbours, and a language model longer
still to find that the word "star" in a question means the visual tokens that show one: in 2,000 steps it only learnt
what is in a picture, and not what belongs to what.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from prunesid_cli.demo.build import WIDTH
from prunesid_cli.demo.scenes import GRID

POSITION = 32
"""Channels of the residual stream that carry the place of a patch at the start."""
PERIODS = (3, 4, 6, 8, 12, 16, 24, 48)
MATCHING, FAST = 2, 6
"""Layers of the language model whose first heads look for likeness; pairs of a head's channels that its rotary
position code turns too fast for that (by more than a radian in ten tokens)."""
BACK, NEAR = {4: 1, 5: 2}, 3
"""Heads of the language model that look back, and by how many words; pairs of their channels that tell lags apart: the
slower ones would weigh words by how much of the common direction they have, more than by how far back they are."""


@torch.no_grad()
def start_language(language: Any, seed: int) -> None:
    """Give an untrained Llama heads that match and heads that look back; all of them copy what they look at.

    All words share one direction, which visual tokens lack. In the first layers, heads compare tokens in all but that
    direction (keys equal to queries), so that a word looks at the visual tokens that resemble it; two more heads in
    every layer look along that direction only, at the word just before and at the one before that.
    """
    common = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)) * language.config.initializer_range
    language.get_input_embeddings().weight += common
    common = common / common.norm()
    for number, layer in enumerate(language.layers):
        attention = layer.self_attn
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
        half = attention.head_dim // 2
        query, key = (p.weight.view(-1, 2, half, WIDTH) for p in (attention.q_proj, attention.k_proj))
        if number < MATCHING:
            query -= (query @ common)[..., None] * common
            query[:, :, :FAST] *= 0.2
            query[:, :, FAST:] *= 2.5
            key.copy_(query)
        speed = 10_000.0 ** (-torch.arange(NEAR) / half)
        for head, words in BACK.items():
            for projection, turn in ((query[head], 0 * speed), (key[head], words * speed)):
                projection *= 0.2
                projection[0, :NEAR] += 0.6 * turn.cos()[:, None] * common
                projection[1, :NEAR] += 0.6 * turn.sin()[:, None] * common


@torch.no_grad()
def open_places(heads: Any) -> None:
    """Clear the eight channels of a trained tower that matter least, and let them carry the place of a patch.

    A tower that was never asked where in the picture it looks overwrites the place within one layer (a linear probe
    misses by 3.4 patches after the first, by 5 after the last). Nothing else writes to these channels at first, so that
    the place reaches the projector; `heads.centre` starts as the linear map that reads it.
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
    """Coordinates in patches [M] -> [M, 4]: half a turn over the picture, and one and a half."""
    angle = coordinate[:, None] * (2 * math.pi / torch.tensor([48.0, 16.0]))
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


@torch.no_grad()
def start_tower(tower: Any, patches: Tensor, generator: torch.Generator) -> None:
    """Give an untrained tower eyes: whitened patch filters, 2-D sine positions, attention that looks at neighbours.

    Args:
        patches: sample patches [M, 3 * 14 * 14], as the processor normalises them.
    """
    content = WIDTH - POSITION
    mean = patches.mean(0)
    scale, basis = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    scale, basis = scale[-content:], basis[:, -content:]
    turn = torch.linalg.qr(torch.randn(content, content, generator=generator))[0]
    filters = turn @ (basis / (scale + 0.02 * scale.mean()).sqrt()).T
    embeddings = tower.embeddings
    kernel = embeddings.patch_embedding.weight
    kernel.zero_()
    kernel[:content] = filters.view(content, *kernel.shape[1:])
    table = embeddings.position_embedding.weight
    table.zero_()
    table[1:, :content] = -(filters @ mean)
    table[1:, content:] = _sines()
    for layer, offsets in zip(tower.encoder.layers, _OFFSETS, strict=False):
        for head, offset in enumerate(offsets):
            _look_at(layer.self_attn, head, offset)


_OFFSETS = (
    ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1)),
    ((-2, 0), (2, 0), (0, -2), (0, 2), (-1, 1), (1, -1)),
    ((-3, 0), (3, 0), (0, -3), (0, 3)),
)
"""Patches to the right and down at which each head of the first layers looks at the start."""


def _sines() -> Tensor:
    """[576, 32]: for each axis and period a sine and a cosine."""
    y, x = torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")
    turns = torch.stack([axis.flatten()[:, None] * (2 * math.pi / torch.tensor(PERIODS)) for axis in (x, y)], 1)
    return torch.stack([turns.sin(), turns.cos()], -1).flatten(1)


def _look_at(attention: Any, head: int, offset: tuple[int, int]) -> None:
    """Set a head's query to the position code turned by `offset` and its key to the plain code."""
    dim = attention.head_dim
    rows, columns = slice(head * dim, head * dim + POSITION), slice(WIDTH - POSITION, WIDTH)
    turn = torch.zeros(POSITION, POSITION)
    for a, step in enumerate(offset):
        for p, period in enumerate(PERIODS):
            angle = 2 * math.pi * step / period
            at = 2 * (a * len(PERIODS) + p)
            turn[at, at], turn[at, at + 1] = math.cos(angle), math.sin(angle)
            turn[at + 1, at], turn[at + 1, at + 1] = -math.sin(angle), math.cos(angle)
    sharpness = 2.2
    for projection, code in ((attention.q_proj, turn), (attention.k_proj, torch.eye(POSITION))):
        projection.weight[rows] *= 0.3
        projection.weight[rows, columns] = sharpness * code
