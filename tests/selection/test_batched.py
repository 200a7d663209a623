"""The route for accelerators, run on a CPU: all images in every launch keep the same tokens as each alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from prunesid_cli.selection.linalg.batched import batched_eigenvectors, group_by_width
from prunesid_cli.selection.linalg.gram import Gram, gram
from prunesid_cli.selection.linalg.ritz import RitzVectors, count_undecided
from prunesid_cli.selection.methods.explanation import explain
from prunesid_cli.selection.nms import find_survivors, find_survivors_batched, iterate_suppression, saliency_rank
from prunesid_cli.selection.prunesid_variants import PRUNESID, PUBLISHED_LLAVA, PUBLISHED_QWEN, PruneSIDVariant
from prunesid_cli.selection.psca import assign_groups, centre_tokens, exact_directions
from tests.selection.inputs import attention, generator, repeated, scene_like, tokens

batched_directions = partial(exact_directions, batched=True)
BATCHED = replace(PRUNESID, directions=batched_directions, batched=True)
ALL = {"paper": PRUNESID, "llava": PUBLISHED_LLAVA, "qwen": PUBLISHED_QWEN}


def eigenvectors(gram: Gram, ks: list[int], width: int) -> tuple[Tensor, list[int]]:
    return batched_eigenvectors(gram.matrix, ks, width, lambda images: count_undecided, gram.min_reliable)


def mixed(n: int, width: int = 512) -> Tensor:
    """features [7, N, C]: varied images, dull ones, and images with hardly any direction at all."""
    same = tokens(5, 1, width)[0].expand(n, -1)
    kinds = [tokens(0, n, width), 4 * tokens(1, n, width), scene_like(2, n, width), 0.05 * scene_like(3, n, width)]
    return torch.cat([*kinds, same[None], repeated(6, n, width), torch.zeros(1, n, width)])


@pytest.mark.parametrize(("n", "width"), [(9, 512), (64, 512), (324, 512), (324, 96), (64, 7)])
def test_the_same_groups(n: int, width: int) -> None:
    features = mixed(n, width)
    ks = [min(k, n) for k in (48, 16, 33, 5, 7, 12, 4)]
    in_batch = assign_groups(batched_directions(features, ks, need_values=False))
    assert torch.equal(in_batch, assign_groups(exact_directions(features, ks, need_values=False)))


@pytest.mark.parametrize("noise", [0, 1e-4, 1e-2])
def test_the_same_groups_where_tokens_repeat(noise: float) -> None:
    """The other directions drown in rounding, or do not exist: their values in fp32 must not be used."""
    features, ks = torch.cat([repeated(seed, 324, 512, noise) for seed in range(6, 12)]), [5, 16, 48] * 2
    in_batch = assign_groups(batched_directions(features, ks, need_values=False))
    assert torch.equal(in_batch, assign_groups(exact_directions(features, ks, need_values=False)))


@pytest.mark.parametrize("width", [512, 64])
def test_the_same_loadings(width: int) -> None:
    features, ks = mixed(144, width), [16, 16, 8, 24, 4, 4, 4]
    in_batch, single = batched_directions(features, ks).abs(), exact_directions(features, ks).abs()
    assert torch.allclose(in_batch, single, atol=1e-5)


def falling(seed: int, n: int, width: int) -> Tensor:
    """features [1, N, C] of a dull image: one direction stands out, the others fall to a millionth of its weight."""
    random = generator(seed)
    left, right = (torch.linalg.qr(torch.randn(side, n, generator=random)).Q for side in (n, width))
    lengths = 10 ** -torch.linspace(1.2, 3, 64)
    lengths = torch.cat([torch.ones(1), lengths, torch.linspace(1e-3, 5e-4, n - 65)])
    return 4 * (left * lengths) @ right.T[None]


@pytest.mark.parametrize("kind", [tokens, scene_like, falling])
def test_few_images_are_doubtful_and_no_other_is_wrong(kind: Callable[[int, int, int], Tensor]) -> None:
    """The first steps are enough for nearly all images; to compute an image again would be slow."""
    quick = gram(centre_tokens(torch.cat([kind(seed, 324, 512) for seed in range(6)])))
    vectors, doubtful = eigenvectors(quick, [16, 32] * 3, 32)
    assert len(doubtful) <= 1
    exact = torch.linalg.eigh(quick.matrix).eigenvectors.flip(-1).abs()
    for row in range(6):
        k = (16, 32)[row % 2]
        if row not in doubtful:
            assert torch.equal(vectors[row].abs().argmax(0), exact[row, :, :k].argmax(-1))


def nearly_tied(matrix: Tensor, k: int, gap: float) -> Tensor:
    """matrix [N, N] fp64 -> one with the same eigenvalues, where a token's two greatest loadings differ by `gap`.

    Two tokens are rotated into each other until one of them loads equally on two directions.
    """
    loads = torch.linalg.eigh(matrix).eigenvectors.flip(-1)[:, :k]

    def turned(token: int, angle: float) -> Tensor:
        return (math.cos(angle) * loads[token] + math.sin(angle) * loads[token + 1]).abs()

    def leads(token: int, pair: list[int], angle: float) -> bool:
        first, second = turned(token, angle)[pair].tolist()
        return bool(first > (1 + gap) * second)

    for token in range(len(matrix) - 1):
        pair, low, high = turned(token, 0).topk(2).indices.tolist(), 0.0, 0.5
        if not leads(token, pair, low) or leads(token, pair, high):
            continue
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if leads(token, pair, middle) else (low, middle)
        if set(turned(token, low).topk(2).indices.tolist()) == set(pair):
            turn = torch.eye(len(matrix), dtype=torch.float64)
            turn[token, token] = turn[token + 1, token + 1] = math.cos(low)
            turn[token, token + 1], turn[token + 1, token] = math.sin(low), -math.sin(low)
            return turn @ matrix @ turn.T
    raise AssertionError("no token to turn")


def test_near_ties_are_decided_in_fp64_on_the_device() -> None:
    matrices = gram(centre_tokens(torch.cat([scene_like(seed, 324, 512) for seed in range(4)]))).matrix.clone()
    matrices[2] = nearly_tied(matrices[2], 16, 1e-7)
    checks = list[int]()

    def criterion(ritz: RitzVectors) -> Tensor:
        checks.append(len(ritz.values))
        return count_undecided(ritz)

    vectors, doubtful = batched_eigenvectors(matrices, [16] * 4, 16, lambda images: criterion, torch.zeros(4))
    assert (checks, doubtful) == ([4, 1], [])
    exact = torch.linalg.eigh(matrices).eigenvectors.flip(-1)[..., :16].abs()
    assert torch.equal(vectors.abs().argmax(1), exact.argmax(-1))


def test_a_broken_matrix_breaks_no_other() -> None:
    quick = gram(centre_tokens(scene_like(0, 144, 256).expand(3, -1, -1)))
    intact, _ = eigenvectors(quick, [8, 8, 8], 16)
    quick.matrix[1] = float("nan")
    vectors, doubtful = eigenvectors(quick, [8, 8, 8], 16)
    assert doubtful == [1]
    assert torch.equal(vectors[0], intact[0])
    assert torch.equal(vectors[2], intact[2])


@pytest.mark.parametrize("seed", range(30))
def test_the_same_survivors(seed: int) -> None:
    random = generator(seed)
    images, n = 3, int(torch.randint(1, 60, (1,), generator=random))
    unit = torch.nn.functional.normalize(torch.randn(images, n, 3, generator=random), dim=-1)
    group = torch.randint(1 + n // 6, (images, n), generator=random)
    rank = saliency_rank(torch.rand(images, n, generator=random))
    candidate = torch.rand(images, n, generator=random) > 0.1
    tau = torch.rand(images, generator=random)
    in_batch = find_survivors_batched(unit, tau, group, rank, candidate)
    for row in range(images):
        assert torch.equal(in_batch[row], find_survivors(unit[row], tau[row], group[row], rank[row], candidate[row]))


def test_a_long_chain_settles() -> None:
    """Each token suppresses the next one: rounds are counted between two checks, not in all."""
    blocks = torch.ones(1, 40, 40).tril(-1).triu(-1).bool()
    kept = iterate_suppression(blocks, torch.ones(1, 40, dtype=torch.bool), 6)
    assert kept[0].tolist() == [i % 2 == 0 for i in range(40)]


@pytest.mark.parametrize("with_saliency", [True, False])
def test_the_same_tokens(with_saliency: bool) -> None:
    features = mixed(144)
    saliency = torch.cat([attention(seed, 144) for seed in range(7)]) if with_saliency else None
    budgets = [64, 33, 1, 140, 20, 64, 7]
    in_batch = explain(features, saliency, budgets, BATCHED, 1)
    for ours, single in zip(in_batch, explain(features, saliency, budgets, PRUNESID, 1), strict=True):
        assert torch.equal(ours.indices, single.indices)
        assert torch.equal(ours.survivor, single.survivor)


@pytest.mark.parametrize("variant", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_variant_in_few_launches(variant: PruneSIDVariant, dtype: torch.dtype) -> None:
    """In half precision a batched product may round differently, so nearly equal results are enough."""
    features = torch.cat([tokens(seed, 100, 128) for seed in range(4)]).to(dtype)
    saliency = torch.cat([attention(seed, 100) for seed in range(4)])
    in_batch = explain(features, saliency, [32] * 4, replace(variant, batched=True), 1)
    for ours, single in zip(in_batch, explain(features, saliency, [32] * 4, variant, 1), strict=True):
        shared = len(set(ours.indices.tolist()) & set(single.indices.tolist()))
        assert shared == 31 if dtype == torch.float32 else shared >= 28


def test_groups_of_a_width_hold_every_image_once() -> None:
    ks = [3, 40, 16, 17, 16, 1]
    for n, max_images in ((16, 1), (16, 9), (576, 2), (10**5, 3)):
        groups = list(group_by_width(ks, n, 8, max_images))
        assert sorted(row for _, rows in groups for row in rows) == list(range(len(ks)))
        assert all(min(ks[row], n) <= width for width, rows in groups for row in rows)
        assert all(len(rows) <= max_images for _, rows in groups)
