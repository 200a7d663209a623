"""Laws that every method obeys for any input, and those of PruneSID."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunesid_cli.errors import NonFiniteError, UsageError
from prunesid_cli.selection import METHODS, select
from prunesid_cli.selection.methods.explanation import explain
from tests.selection.inputs import attention, batch, scene_like, tokens

every_method = pytest.mark.parametrize("method", METHODS)
prunes_by_group = pytest.mark.parametrize("method", ["prunesid", "prunesid-published"])


def check_kept(kept: Tensor, n: int, count: int) -> None:
    assert kept.dtype == torch.int64
    assert kept.shape == (count,)
    assert len(set(kept.tolist())) == count
    assert all(0 <= i < n for i in kept.tolist())


@every_method
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_keeps_exactly_the_budget(method: str, data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 40), label="N")
    width = data.draw(st.integers(1, 12), label="C")
    few_values = st.sampled_from([-2.0, 0.0, 0.5, 1.0, 3.0])
    numbers = data.draw(st.lists(few_values, min_size=n * width, max_size=n * width))
    features = torch.tensor(numbers).view(1, n, width)
    values = st.lists(st.sampled_from([0.0, 1e-42, 0.1, 0.1, 0.7]), min_size=n, max_size=n)
    drawn_saliency = data.draw(st.none() | values, label="saliency")
    saliency = None if drawn_saliency is None else torch.tensor([drawn_saliency])
    budget, num_cls = data.draw(st.integers(0, n + 5)), data.draw(st.integers(0, 1))
    (kept,) = select(features, saliency, [budget], method, num_cls)
    check_kept(kept, n, max(min(budget - num_cls, n), 0))


@every_method
@pytest.mark.parametrize("with_saliency", [True, False])
def test_mixed_batch_equals_singles(method: str, with_saliency: bool) -> None:
    features, attended = batch(6, n=50)
    saliency = attended if with_saliency else None
    budgets = [16, 40, 3, 60, 25, 49]
    in_batch = select(features, saliency, budgets, method, num_cls=1)
    for row, budget in enumerate(budgets):
        row_saliency = None if saliency is None else saliency[row : row + 1]
        (single,) = select(features[row : row + 1], row_saliency, [budget], method, num_cls=1)
        assert torch.equal(in_batch[row], single)


@every_method
def test_the_row_in_a_batch_does_not_matter(method: str) -> None:
    """Odd sizes leave the rows of a batch unaligned in memory."""
    features = torch.cat([tokens(seed, 31, 37) for seed in range(5)])
    saliency = torch.cat([attention(seed, 31) for seed in range(5)])
    forward = select(features, saliency, [13] * 5, method)
    backward = select(features.flip(0), saliency.flip(0), [13] * 5, method)
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))


@every_method
def test_repeatable_over_runs_and_threads(method: str) -> None:
    features, saliency = batch(2, n=144)
    before, threads = torch.get_num_threads(), (1, 2, 1)
    results = []
    try:
        for count in threads:
            torch.set_num_threads(count)
            results.append(select(features, saliency, [33, 64], method))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for later in results[1:] for a, b in zip(results[0], later, strict=True))


@prunes_by_group
@pytest.mark.parametrize("with_saliency", [True, False])
def test_a_large_image_does_not_depend_on_its_batch(method: str, with_saliency: bool) -> None:
    """For this many tokens only the leading directions are computed: few of them, and many."""
    features = torch.cat([scene_like(seed, 576, 640) for seed in range(3)])
    saliency = torch.cat([attention(seed, 576) for seed in range(3)]) if with_saliency else None
    before, budgets, results = torch.get_num_threads(), [192, 64, 130], []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(select(features, saliency, budgets, method, 1))
            rows = [(features[i : i + 1], None if saliency is None else saliency[i : i + 1]) for i in range(3)]
            pairs = zip(rows, budgets, strict=True)
            results.append([select(*row, [budget], method, 1)[0] for row, budget in pairs])
    finally:
        torch.set_num_threads(before)
    for later in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], later, strict=True))


@every_method
def test_global_random_state_is_neither_used_nor_changed(method: str) -> None:
    features, saliency = batch(1)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = select(features, saliency, [16], method)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(first[0], select(features, saliency, [16], method)[0])


@every_method
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_non_finite_rows_are_named(method: str, poison: float) -> None:
    features, saliency = batch(4)
    features[1, 3, 2] = poison
    saliency[3, 0] = poison
    with pytest.raises(NonFiniteError) as error:
        select(features, saliency, [16] * 4, method)
    assert error.value.rows == [1, 3]
    assert error.value.hint


@every_method
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_precision_and_no_gradient(method: str, dtype: torch.dtype) -> None:
    features, saliency = batch(1)
    (kept,) = select(features.to(dtype).requires_grad_(), saliency.to(dtype), [16], method)
    check_kept(kept, 48, 16)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "prunesid-published"])
def test_raster_order(method: str) -> None:
    features, saliency = batch(3)
    assert all(kept.diff().min() > 0 for kept in select(features, saliency, [16] * 3, method))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), budget_with_cls=st.integers(2, 47), num_cls=st.integers(0, 1))
def test_every_group_keeps_one(seed: int, budget_with_cls: int, num_cls: int) -> None:
    """The budgets are large enough, and each group has tokens with a saliency."""
    (image,) = explain(tokens(seed, noise=0.1 + seed % 4), attention(seed), [budget_with_cls], num_cls=num_cls)
    kept = set(image.group[image.indices].tolist())
    assert kept == set(image.group.tolist())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), budget_with_cls=st.integers(2, 20))
def test_the_suppressor_is_the_first_survivor_too_similar(seed: int, budget_with_cls: int) -> None:
    features, saliency = tokens(seed, noise=0.1 + seed % 4), attention(seed)
    (image,) = explain(features, saliency, [budget_with_cls])
    unit = torch.nn.functional.normalize(features[0], dim=-1)
    for j, by in enumerate(image.suppressor.tolist()):
        before = [
            i
            for i in sorted(range(48), key=lambda i: (-saliency[0, i], i))
            if image.survivor[i] and image.group[i] == image.group[j] and unit[i] @ unit[j] > image.tau + 1e-5
        ]
        if image.survivor[j]:
            assert by == -1
        elif by != (before or [-1])[0]:  # within rounding of the threshold
            assert abs(unit[by] @ unit[j] - image.tau) < 1e-4


@pytest.mark.parametrize("value", [0.0, 1e-45, 1.0])
def test_equal_saliency_prefers_the_first(value: float) -> None:
    """No dropped token precedes a kept one of its group with the same result of the suppression."""
    (image,) = explain(tokens(5), torch.full((1, 48), value), [20])
    kept = set(image.indices.tolist())
    check_kept(image.indices, 48, 20)
    for i in set(range(48)) - kept:
        peers = (image.group == image.group[i]) & (image.survivor == image.survivor[i])
        assert all(j < i for j in peers.nonzero().flatten().tolist() if j in kept)


@every_method
@pytest.mark.parametrize(
    "features",
    [torch.ones(1, 30, 8), torch.zeros(1, 30, 8), tokens(1, 1).expand(1, 30, -1)],
    ids=["ones", "zeros", "identical"],
)
def test_an_image_of_one_thing(method: str, features: Tensor) -> None:
    for saliency in (None, attention(0, 30), torch.zeros(1, 30)):
        check_kept(select(features, saliency, [10], method)[0], 30, 10)


@prunes_by_group
def test_negative_redundancy(method: str) -> None:
    features = tokens(2, noise=1.0)
    features = features - features.mean(1, keepdim=True)
    (image,) = explain(features, attention(2), [16])
    assert image.redundancy < 0
    check_kept(select(features, attention(2), [16], method)[0], 48, 16)


def test_tiny_budgets() -> None:
    features, saliency = batch(1)
    for budget in range(5):
        for num_cls in (0, 1):
            (kept,) = select(features, saliency, [budget], "prunesid", num_cls)
            check_kept(kept, 48, max(budget - num_cls, 0))


def test_no_images_and_no_tokens() -> None:
    assert select(torch.zeros(0, 5, 4), None, [], "prunesid") == []
    assert select(torch.zeros(1, 0, 4), None, [4], "prunesid")[0].tolist() == []


def test_baselines() -> None:
    features, saliency = batch(2)
    for method in ("random", "grid"):
        first, second = select(features, saliency, [12, 12], method)
        assert torch.equal(first, second)
    assert select(features, None, [4, 4], "grid")[0].tolist() == [6, 18, 30, 42]
    top = select(features, saliency, [5, 5], "saliency")[0]
    assert set(top.tolist()) == set(saliency[0].topk(5).indices.tolist())
    norm = select(features, None, [5, 5], "saliency")[1]
    assert set(norm.tolist()) == set(features[1].norm(dim=-1).topk(5).indices.tolist())


def test_unknown_methods_are_refused_with_the_list() -> None:
    with pytest.raises(UsageError) as error:
        select(*batch(1), [4], "prunsid")
    assert all(name in error.value.hint for name in METHODS)


def test_wrong_calls_raise() -> None:
    features, saliency = batch(2)
    for tokens_, saliency_, budgets in [
        (features[0], None, [4]),
        (features, saliency[:, 1:], [4, 4]),
        (features, saliency, [4]),
        (features, saliency, [4, -1]),
    ]:
        with pytest.raises(ValueError, match=r"must be|need"):
            select(tokens_, saliency_, budgets)
