"""Seeded synthetic inputs: images made of a few things, more or less similar."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.budget import spread_tokens


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokens(seed: int, n: int = 48, width: int = 64, noise: float = 0.5) -> Tensor:
    """features [1, N, C]: N tokens of N // 6 + 1 things."""
    random = generator(seed)
    things = torch.randn(n // 6 + 1, width, generator=random)
    which = torch.randint(len(things), (n,), generator=random)
    return (things[which] + noise * torch.randn(n, width, generator=random)).unsqueeze(0)


def scene_like(seed: int, n: int = 576, width: int = 1024) -> Tensor:
    """features [1, N, C]: a square of tokens that share a mean and resemble their neighbours at several distances.

    The spectrum falls like that of a photograph: a dominant direction, then a power law.
    """
    random, side = generator(seed), round(n**0.5)
    features = torch.randn(1, width, generator=random) + 0.1 * torch.randn(side * side, width, generator=random)
    for patch in (12, 6, 3, 1.5):
        coarse = torch.randn(1, width, *[max(2, round(side / patch))] * 2, generator=random)
        fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
        features += 0.4 * patch**0.5 * fine[0].flatten(1).T
    return features.unsqueeze(0)


def repeated(seed: int, n: int = 48, width: int = 64, noise: float = 0.0) -> Tensor:
    """features [1, N, C]: three tokens, repeated with little noise."""
    return tokens(seed, 3, width)[:, torch.arange(n) % 3] + noise * torch.randn(n, width, generator=generator(seed))


def attention(seed: int, n: int = 48) -> Tensor:
    """saliency [1, N], positive, like a softmax row."""
    return torch.randn(1, n, generator=generator(seed + 1_000_000)).mul(2).softmax(-1)


def batch(size: int, n: int = 48) -> tuple[Tensor, Tensor]:
    """features [B, N, C], saliency [B, N]."""
    features = torch.cat([tokens(seed, n, noise=0.2 + 0.3 * seed) for seed in range(size)])
    return features, torch.cat([attention(seed, n) for seed in range(size)])


def apportion(phi: Sequence[float] | Tensor, mean: float, floor: int, ceiling: int) -> list[int]:
    """Eq. 7 over images of one size, all within the same bounds."""
    return spread_tokens(phi, [mean] * len(phi), [(floor, ceiling)] * len(phi))
