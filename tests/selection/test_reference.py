"""The closed forms and the fixed point give the results of the definition's loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunesid_cli.selection.group_allocation import allocate, smallest_rise
from prunesid_cli.selection.methods.explanation import explain
from prunesid_cli.selection.nms import find_survivors, iterate_suppression, saliency_rank
from prunesid_cli.selection.prunesid_variants import PRUNESID
from prunesid_cli.selection.similarity import normalize_tokens
from tests.selection import reference
from tests.selection.inputs import generator, tokens


def saliencies(seed: int, n: int) -> Tensor:
    """Every third case has ties, every fourth zeros."""
    saliency = torch.rand(1, n, generator=generator(seed)) + 1e-3
    if seed % 3 == 0:
        saliency = (saliency * 4).round() / 4
    return saliency * (torch.rand(1, n, generator=generator(-seed - 1)) > 0.5) if seed % 4 == 0 else saliency


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_selection_equals_the_reference(first: int) -> None:
    for seed in range(first, first + 50):
        n, num_cls = 8 + seed % 17, seed % 2
        budget_with_cls = 2 + seed * 7 % (n - 1)
        features = tokens(seed, n, width=8, noise=0.1 + seed % 5) - 0.3 * (seed % 3)
        directions = torch.randn(1, n, max(budget_with_cls // 4, 1), generator=generator(seed))
        saliency = saliencies(seed, n)

        def fixed_directions(
            _: Tensor, ks: Sequence[int], need_values: bool, directions: Tensor = directions
        ) -> Tensor:
            return directions

        variant = replace(PRUNESID, directions=fixed_directions, min_raster_budget=math.inf)
        image = reference.Image(
            features[0].double().tolist(), saliency[0].tolist(), directions[0].tolist(), budget_with_cls, num_cls
        )
        (ours,) = explain(features, saliency, [budget_with_cls], variant, num_cls)
        assert ours.indices.tolist() == reference.select(image), f"seed {seed}"


COUNTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=20)


@settings(max_examples=300, deadline=None)
@given(groups=COUNTS, data=st.data())
def test_allocation_equals_the_reference(groups: list[tuple[int, int]], data: st.DataObject) -> None:
    sizes = [size for size, _ in groups]
    counts = [min(size, count) for size, count in groups]
    budget_with_cls = data.draw(st.integers(1, sum(sizes) + 1))
    num_cls = data.draw(st.integers(0, 1))
    ours = allocate(torch.tensor([sizes]), torch.tensor([counts]), torch.tensor([budget_with_cls]), num_cls)
    assert ours.upper.tolist() == [reference.upper_bounds(sizes, counts, budget_with_cls)]
    assert ours.taken.tolist() == [reference.allocate(sizes, counts, budget_with_cls, num_cls)]
    if budget_with_cls - num_cls >= int(ours.lower.sum()) and budget_with_cls <= sum(sizes):
        assert int(ours.taken.sum()) == budget_with_cls - num_cls


@settings(max_examples=200, deadline=None)
@given(space=st.lists(st.integers(0, 50), min_size=1, max_size=20), data=st.data())
def test_the_rise_is_the_smallest_that_suffices(space: list[int], data: st.DataObject) -> None:
    lack = data.draw(st.integers(-5, sum(space)))
    t = int(smallest_rise(torch.tensor([space]), torch.tensor([lack])))
    assert sum(min(t, r) for r in space) >= lack
    assert t == 0 or sum(min(t - 1, r) for r in space) < lack


def test_suppression_follows_a_long_chain() -> None:
    """Each token suppresses only the next one: every second survives, after as many rounds as tokens."""
    n = 200
    turn = 1.2 * torch.arange(n) / n  # cosines of neighbours are the greatest
    unit = torch.stack([turn.cos(), turn.sin()], 1)
    tau = torch.tensor(1.7 * 1.2 / n).cos()
    rank, group = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    kept = find_survivors(unit.double(), tau.double(), group, rank, torch.ones(n, dtype=torch.bool))
    assert kept.tolist() == [i % 2 == 0 for i in range(n)]


def test_suppression_is_strict() -> None:
    unit = torch.tensor([[1.0, 0.0], [0.5, 3**0.5 / 2]])
    rank, group = torch.tensor([0, 1]), torch.zeros(2, dtype=torch.int64)
    for tau, kept in ((0.5, [True, True]), (0.49, [True, False])):
        assert find_survivors(unit, torch.tensor(tau), group, rank, torch.ones(2, dtype=torch.bool)).tolist() == kept


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 400), num_groups=st.integers(1, 40), tau=st.floats(-1, 1.1))
def test_groups_of_all_sizes_are_suppressed_separately(seed: int, n: int, num_groups: int, tau: float) -> None:
    """Large, small and empty groups, compared with one matrix of all tokens."""
    random = generator(seed)
    unit = normalize_tokens(torch.randn(n, 3, generator=random))
    group = (num_groups * torch.rand(n, generator=random) ** 3).long()
    rank = saliency_rank(torch.rand(n, generator=random))
    candidate = torch.rand(n, generator=random) > 0.1
    blocks = (unit @ unit.T > tau) & (group[:, None] == group) & (rank[:, None] > rank)
    ours = find_survivors(unit, torch.tensor(tau), group, rank, candidate)
    assert torch.equal(ours, iterate_suppression(blocks, candidate))
