"""prunesid-plus: each group keeps a token, and the rest of the budget covers the image."""

from __future__ import annotations

import torch

from prunesid_cli.selection import select
from prunesid_cli.selection.psca import assign_groups, exact_directions
from tests.selection.inputs import attention, tokens


def test_every_group_keeps_its_most_salient_token() -> None:
    for seed in range(5):
        features, saliency = tokens(seed, 60, 90), attention(seed, 60)
        (kept,) = select(features, saliency, [24], "prunesid-plus")
        group = assign_groups(exact_directions(features, [24 // 4]))[0]
        for number in group.unique():
            members = (group == number).nonzero().flatten()
            assert members[saliency[0, members].argmax()] in kept


def test_a_faint_thing_is_kept_beside_a_salient_one() -> None:
    """At a small budget all tokens are similar enough to be suppressed, and PruneSID then keeps a copy."""
    big, small = torch.eye(12)[0], torch.eye(12)[0] + torch.eye(12)[1]
    features = torch.stack([big] * 8 + [small] * 4)[None]
    saliency = torch.tensor([[0.9 - 0.01 * i for i in range(8)] + [0.1] * 4])
    (kept,) = select(features, saliency, [2], "prunesid-plus")
    (salient,) = select(features, saliency, [2], "prunesid")
    assert (kept.tolist(), salient.tolist()) == ([0, 8], [0, 1])
