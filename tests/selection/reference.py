"""PruneSID as its definition reads, in plain loops over numbers: slow, simple, and only for tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Image:
    """tokens and V as nested lists [N][C], [N][G]; saliency [N]; `budget_with_cls` counts `num_cls`."""

    tokens: list[list[float]]
    saliency: list[float]
    directions: list[list[float]]
    budget_with_cls: int
    num_cls: int


def first_largest(values: list[float]) -> int:
    return values.index(max(values))


def cosine(a: list[float], b: list[float]) -> float:
    norms = math.sqrt(math.fsum(x * x for x in a)) * math.sqrt(math.fsum(x * x for x in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0


def cosines(image: Image) -> list[list[float]]:
    return [[cosine(a, b) for b in image.tokens] for a in image.tokens]


def rho(similarity: list[list[float]]) -> float:
    n = len(similarity)
    pairs = [similarity[i][j] for i in range(n) for j in range(i + 1, n)]
    return math.fsum(pairs) / len(pairs) if pairs else 0.0


def greedy_nms(members: list[int], image: Image, similarity: list[list[float]], tau: float) -> list[int]:
    """Keep the most salient token, drop those too similar to it, and repeat. Tokens without saliency are never kept."""
    left = [i for i in members if image.saliency[i] > 0]
    kept = []
    while left:
        best = min(left, key=lambda i: (-image.saliency[i], i))
        kept.append(best)
        left = [i for i in left if i != best and not similarity[best][i] > tau]
    return kept


def upper_bounds(sizes: list[int], counts: list[int], budget_with_cls: int) -> list[int]:
    start = [min(5 * math.ceil(budget_with_cls / 64), c, k) for c, k in zip(sizes, counts, strict=True)]
    bounds, t = start, 0
    while sum(bounds) < budget_with_cls and bounds != sizes:
        t += 1
        bounds = [min(u + t, c) for u, c in zip(start, sizes, strict=True)]
    return bounds


def quotas(counts: list[int], rest: int) -> list[int]:
    """The running share is rounded to fp32 at every step, as the definition asks."""
    total = np.float32(max(sum(counts), 1))
    running, edges = 0.0, [0]
    for count in counts:
        running += float(np.float32(count) / total)
        edges.append(round(float(np.float32(running) * np.float32(rest))))
    return [b - a for a, b in pairwise(edges)]


def allocate(sizes: list[int], counts: list[int], budget_with_cls: int, num_cls: int) -> list[int]:
    low = [min(1, c) for c in sizes]
    up = upper_bounds(sizes, counts, budget_with_cls)
    rest = max(0, budget_with_cls - sum(low) - num_cls)
    taken = [min(q + a, u) for q, a, u in zip(quotas(counts, rest), low, up, strict=True)]
    for g in sorted(range(len(sizes)), key=lambda g: (-counts[g], g)):
        while taken[g] < up[g] and sum(taken) < rest + sum(low):
            taken[g] += 1
    return taken


def select(image: Image) -> list[int]:
    """The kept indices, group by group."""
    label = [first_largest([abs(v) for v in row]) for row in image.directions]
    num_groups = len(image.directions[0])
    members = [[i for i, g in enumerate(label) if g == group] for group in range(num_groups)]
    similarity = cosines(image)
    tau = image.budget_with_cls / 32 * rho(similarity)
    kept = [greedy_nms(group, image, similarity, tau) for group in members]
    sizes, counts = [len(group) for group in members], [len(group) for group in kept]
    result: list[int] = []
    for group, survivors, take in zip(
        members, kept, allocate(sizes, counts, image.budget_with_cls, image.num_cls), strict=True
    ):
        rest = [i for i in group if i not in survivors]
        result += (survivors + sorted(rest, key=lambda i: (-image.saliency[i], i)))[:take]
    return result[: image.budget_with_cls - image.num_cls]
