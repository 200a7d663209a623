"""SCOPE (Deng et al., NeurIPS 2025, arXiv 2510.24214): tokens that are salient and stand for many others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunesid_cli.selection.targets import by_target, cosines, places, row_of, targets


def scope(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], reserved: int = 0) -> list[Tensor]:
    """Greedily the token of the highest SCOPE score: what it adds to the coverage, times its saliency.

    A token is covered as much as the most similar of those taken resembles it; coverage is the sum over all tokens. As
    published, in O(T N^2): the exponent alpha of the saliency is 1, as the published scripts set it, coverage begins at
    0, so that opposites do not count against a token, and without saliency the coverage alone decides.
    """
    return by_target(_covering, features, saliency, targets(features, budgets, reserved))


def _covering(features: Tensor, saliency: Tensor | None, target: int) -> Sequence[Tensor]:
    near = cosines(features)
    weight = near.new_ones(near.shape[:2]) if saliency is None else saliency.float()
    covered, more = torch.zeros_like(weight), torch.empty_like(near)
    taken = torch.zeros_like(weight, dtype=torch.bool)
    for _ in range(target):
        gain = torch.sub(near, covered.unsqueeze(1), out=more).clamp_(min=0).sum(-1)
        best = (gain * weight).masked_fill_(taken, -math.inf).argmax(-1, keepdim=True)
        taken.scatter_(1, best, True)
        covered = torch.maximum(covered, row_of(near, best))
    return list(places(taken, target))
