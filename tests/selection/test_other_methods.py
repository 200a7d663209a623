"""The methods beside PruneSID: cases small enough to do by hand, and the rules of each written as slow loops."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from inspect import signature

import pytest
import torch
from torch import Tensor

from prunesid_cli.selection import select
from prunesid_cli.selection.batching import group_by_count
from prunesid_cli.selection.linalg.batched import MAX_MATRIX_ENTRIES
from prunesid_cli.selection.methods import divprune, plus, scope, vispruner
from prunesid_cli.selection.similarity import cosine_similarity
from tests.selection.inputs import attention, scene_like, tokens

Slowly = Callable[[list[list[float]], list[float], int], list[int]]


def at_angles(*degrees: float) -> Tensor:
    """features [1, N, 2]."""
    turns = torch.tensor([degrees]) * (math.pi / 180)
    return torch.stack([turns.cos(), turns.sin()], -1)


def kept(method: str, features: Tensor, saliency: Sequence[float] | None, budget: int) -> list[int]:
    row = None if saliency is None else torch.tensor([saliency])
    return select(features, row, [budget], method)[0].tolist()


@pytest.mark.parametrize(("budget", "expected"), [(1, [3]), (2, [1, 3]), (3, [1, 2, 3])])
def test_divprune_begins_with_the_loneliest_token(budget: int, expected: list[int]) -> None:
    assert kept("divprune", at_angles(0, 10, 90, 200), [1.0, 0.0, 0.0, 0.0], budget) == expected


def test_divprune_takes_no_token_twice() -> None:
    assert kept("divprune", at_angles(0, 0, 0, 90), None, 2) == [0, 3]
    assert kept("divprune", at_angles(0, 0, 0, 90), None, 3) == [0, 1, 3]


@pytest.mark.parametrize(
    ("saliency", "budget", "expected"),
    [
        (None, 1, [0]),  # stands for three
        (None, 2, [0, 3]),
        ([0.1, 0.1, 0.1, 0.9], 1, [3]),  # three times a little is less
        ([0.1, 0.2, 0.1, 0.9], 2, [1, 3]),
        ([0.5, 0.4, 0.3, 0.01], 2, [0, 3]),  # the others are covered
    ],
)
def test_scope_weighs_what_is_covered(saliency: list[float] | None, budget: int, expected: list[int]) -> None:
    assert kept("scope", at_angles(0, 0, 0, 90), saliency, budget) == expected


def test_scope_ignores_opposites() -> None:
    """The first token resembles three and is the opposite of two; the sixth resembles two and has no opposite."""
    assert kept("scope", at_angles(0, 0, 0, 180, 180, 90, 90), None, 1) == [0]


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [((0, 0, 90, 180, 181), [0, 1, 2, 3]), ((0, 0, 181, 180, 90), [0, 1, 3, 4])],
)
def test_vispruner_drops_duplicates_of_what_is_not_salient(degrees: tuple[float, ...], expected: list[int]) -> None:
    """The first two are kept although they are equal; the outer ones of the others are compared with the middle one."""
    assert kept("vispruner", at_angles(*degrees), [0.5, 0.4, 0.3, 0.2, 0.1], 4) == expected


def test_vispruner_orders_tokens_by_saliency() -> None:
    assert kept("vispruner", at_angles(180, 90, 0, 181, 0), [0.2, 0.3, 0.5, 0.1, 0.4], 4) == [0, 1, 2, 4]
    assert kept("vispruner", at_angles(90, 180, 0, 181, 0), [0.3, 0.1, 0.5, 0.2, 0.4], 4) == [0, 2, 3, 4]


def divprune_slowly(similarity: list[list[float]], saliency: list[float], count: int) -> list[int]:
    everything = range(len(similarity))
    selected: list[int] = []
    while len(selected) < count:
        left = [i for i in everything if i not in selected]
        selected.append(min(left, key=lambda i: max(similarity[i][j] for j in (selected or everything) if j != i)))
    return sorted(selected)


def scope_slowly(similarity: list[list[float]], saliency: list[float], count: int) -> list[int]:
    everything = range(len(similarity))
    selected: list[int] = []
    while len(selected) < count:
        covered = [max([0.0, *(similarity[i][j] for j in selected)]) for i in everything]
        gain = [saliency[j] * sum(max(similarity[i][j] - covered[i], 0) for i in everything) for j in everything]
        selected.append(max([j for j in everything if j not in selected], key=gain.__getitem__))
    return sorted(selected)


def vispruner_slowly(similarity: list[list[float]], saliency: list[float], count: int) -> list[int]:
    order = sorted(range(len(similarity)), key=lambda i: -saliency[i])
    salient, others = order[: count // 2], order[count // 2 :]
    while (over := len(others) - (count - len(salient))) > 0:
        even, odd = others[::2], others[1::2]
        ranked = sorted(even, key=lambda i: -max(similarity[i][j] for j in odd))
        others = ranked[min(8, over) :] + odd
    return sorted(salient + others)


def plus_slowly(similarity: list[list[float]], saliency: list[float], count: int) -> list[int]:
    everything = range(len(similarity))
    return scope_slowly(
        [[similarity[i][j] * saliency[i] ** 0.5 for j in everything] for i in everything], saliency, count
    )


SLOWLY: dict[str, Slowly] = {
    "divprune": divprune_slowly,
    "scope": scope_slowly,
    "vispruner": vispruner_slowly,
    "prunesid-plus": plus_slowly,
}


@pytest.mark.parametrize("method", SLOWLY)
@pytest.mark.parametrize("seed", range(6))
def test_the_rule_written_out(method: str, seed: int) -> None:
    """Odd numbers, and budgets from one to all but one. A difference in the first tokens would change all others."""
    n = 37 + seed
    features, saliency = tokens(seed, n), attention(seed, n)
    similarity = cosine_similarity(features)[0].tolist()
    for budget in (1, 2, 9, 20, n - 1):
        expected = SLOWLY[method](similarity, saliency[0].tolist(), budget)
        assert select(features, saliency, [budget], method)[0].tolist() == expected


@pytest.mark.parametrize("method", ["divprune", "scope", "prunesid-plus"])
def test_more_of_the_same(method: str) -> None:
    features, saliency = scene_like(3, 64, 48), attention(3, 64)
    sets = [set(select(features, saliency, [budget], method)[0].tolist()) for budget in range(1, 65)]
    assert all(fewer < more for fewer, more in zip(sets, sets[1:], strict=False))


@pytest.mark.parametrize("rule", [method._select for method in (divprune, scope, vispruner, plus)])
def test_a_shared_launch_changes_nothing(rule: Callable[..., Sequence[Tensor]]) -> None:
    """Accelerators run every operation on a batch."""
    features = torch.cat([tokens(seed, 50) for seed in range(4)])
    saliency = torch.cat([attention(seed, 50) for seed in range(4)])
    tensors = (features, saliency)[: len(signature(rule).parameters) - 1]
    for row, in_batch in enumerate(rule(*tensors, 17)):
        (single,) = rule(*(tensor[row : row + 1] for tensor in tensors), 17)
        assert len(in_batch) == 17 and torch.equal(in_batch, single)


def test_groups_of_a_count_hold_every_image_once() -> None:
    counts = [5, 9, 5, 0, 9, 9, 5]
    for n in (16, 4096, 10**5):
        groups = list(group_by_count(counts, n))
        assert sorted(row for rows in groups for row in rows) == list(range(len(counts)))
        assert all(len({counts[row] for row in rows}) == 1 for rows in groups)
        assert all(len(rows) * n * n <= max(MAX_MATRIX_ENTRIES, n * n) for rows in groups)
