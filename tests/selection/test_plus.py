"""prunesid-plus: small things beside large ones, and what takes the place of the saliency."""

from __future__ import annotations

import torch

from prunesid_cli.selection import select
from tests.selection.inputs import tokens


def test_a_faint_thing_is_kept_beside_a_salient_one() -> None:
    """At a small budget all tokens are similar enough to be suppressed, and PruneSID then keeps a copy."""
    big, small = torch.eye(12)[0], torch.eye(12)[0] + torch.eye(12)[1]
    features = torch.stack([big] * 8 + [small] * 4)[None]
    saliency = torch.tensor([[0.9 - 0.01 * i for i in range(8)] + [0.1] * 4])
    (kept,) = select(features, saliency, [2], "prunesid-plus")
    (salient,) = select(features, saliency, [2], "prunesid")
    assert (kept.tolist(), salient.tolist()) == ([0, 8], [0, 1])


def test_a_large_background_does_not_outweigh_a_small_thing() -> None:
    """A hundred tokens of the background, each a little salient, against one token of a thing."""
    ground, thing = torch.eye(4)[0], torch.eye(4)[1]
    features = torch.stack([ground] * 100 + [thing])[None]
    saliency = torch.tensor([[0.01] * 100 + [0.7]])
    assert select(features, saliency, [1], "scope")[0].tolist() == [0]
    assert select(features, saliency, [1], "prunesid-plus")[0].tolist() == [100]


def test_without_saliency_tokens_far_from_the_mean_count_more() -> None:
    features = tokens(1, 40)
    distance = (features - features.mean(1, keepdim=True)).square().sum(-1)
    for budget in (1, 8, 30):
        expected = select(features, distance, [budget], "prunesid-plus")[0]
        assert torch.equal(select(features, None, [budget], "prunesid-plus")[0], expected)
