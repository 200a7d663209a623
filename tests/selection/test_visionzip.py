"""VisionZip's merged tokens: which tokens are merged, into which rows, together with what else they carry."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunesid_cli.pipeline.segments import assemble_token_set
from prunesid_cli.selection import select_batch
from prunesid_cli.selection.methods.visionzip import contextual_count
from prunesid_cli.selection.result import Selection
from prunesid_cli.types import Encoded, Layout, Region, Segment
from tests.selection.inputs import attention, batch, tokens

FALLING = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.03, 0.02, 0.01]])


def merged_rows(selection: Selection) -> Tensor:
    assert selection.into is not None
    return selection.into


@pytest.mark.parametrize(("budget_with_cls", "expected"), [(64, 10), (128, 20), (192, 30), (7, 1), (6, 0)])
def test_the_published_shares(budget_with_cls: int, expected: int) -> None:
    assert contextual_count(budget_with_cls) == expected


def test_other_tokens_become_one() -> None:
    features = tokens(0, 9)
    (selection,) = select_batch(features, FALLING, [7], "visionzip")
    assert selection.indices.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert merged_rows(selection).tolist() == [0, 1, 2, 3, 4, 5, 6, 6, 6]
    rows = selection.rows(features[0])
    assert torch.equal(rows[:6], features[0, :6])
    torch.testing.assert_close(rows[6], features[0, 6:].mean(0))


def test_each_joins_what_it_resembles_most() -> None:
    """The first and the fourth of the six tokens that are not dominant become contextual tokens."""
    saliency = torch.cat([attention(0, 11) + 1, torch.zeros(1, 6)], 1)
    x, y = torch.eye(2)
    others = torch.stack([x, x + 0.1 * y, y + 0.1 * x, y, 3 * x, 2 * y])
    features = torch.cat([torch.randn(11, 2, generator=torch.Generator().manual_seed(1)), others])[None]
    (selection,) = select_batch(features, saliency, [13], "visionzip")
    assert selection.indices.tolist() == [*range(11), 11, 14]
    assert merged_rows(selection)[11:].tolist() == [11, 11, 12, 12, 11, 12]
    torch.testing.assert_close(selection.rows(features[0])[11], (x + x + 0.1 * y + 3 * x) / 3)


def test_a_cls_token_counts_as_dominant() -> None:
    """A budget of 13 tokens has 2 contextual ones, one of 12 would have 1."""
    features, saliency = batch(1)
    (selection,) = select_batch(features, saliency, [13], "visionzip", num_cls=1)
    sizes = merged_rows(selection).bincount()
    assert sorted(sizes.tolist())[:-2] == [1] * 10
    assert selection.indices[sizes == 1].tolist() == sorted(saliency[0].topk(10).indices.tolist())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 60), data=st.data())
def test_each_token_is_part_of_one_row(seed: int, n: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, n - 1))
    features = tokens(seed, n)
    (selection,) = select_batch(features, attention(seed, n), [budget], "visionzip")
    if selection.into is None:
        assert contextual_count(budget) == 0
        return
    assert selection.into[selection.indices].tolist() == list(range(budget))
    assert set(selection.into.tolist()) == set(range(budget))
    sizes = selection.into.bincount()
    assert int((sizes > 1).sum()) <= contextual_count(budget)
    weighed = (selection.rows(features[0]) * sizes[:, None]).sum(0)
    torch.testing.assert_close(weighed, features[0].sum(0), atol=1e-4, rtol=1e-4)


def test_a_batch_merges_like_its_images() -> None:
    features, saliency = batch(5, n=50)
    budgets = [16, 40, 60, 25, 49]
    in_batch = select_batch(features, saliency, budgets, "visionzip", num_cls=1)
    for row, budget in enumerate(budgets):
        (single,) = select_batch(features[row : row + 1], saliency[row : row + 1], [budget], "visionzip", num_cls=1)
        assert torch.equal(in_batch[row].indices, single.indices)
        assert torch.equal(in_batch[row].rows(features[row]), single.rows(features[row]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_precision_stays(dtype: torch.dtype) -> None:
    features = tokens(0, 9).to(dtype)
    (selection,) = select_batch(features, FALLING, [7], "visionzip")
    rows = selection.rows(features[0])
    assert rows.dtype == dtype
    assert torch.equal(rows[:6], features[0, :6])
    assert torch.equal(rows[6], features[0, 6:].float().mean(0).to(dtype))


def test_extra_values_are_merged_too() -> None:
    """A merged token is at the slot of its first part."""
    features, extra = tokens(0, 9)[0], tokens(1, 9, 5)[0]
    slots = (0, 1, 2, 10, 11, 12, 20, 21, 22)
    segment = Segment(features, FALLING[0], extra=extra, slots=slots)
    item = Encoded((segment,), Layout("", (23,), (Region(0, 3, 3, 10),)))
    (selection,) = select_batch(features[None], FALLING, [7], "visionzip")
    kept = assemble_token_set(item, [selection], [selection.indices.tolist()], [7], False)
    assert kept.slots == slots[:7]
    assert torch.equal(kept.tokens[:6], torch.cat([features, extra], -1)[:6])
    torch.testing.assert_close(kept.tokens[6], torch.cat([features[6:].mean(0), extra[6:].mean(0)]))
