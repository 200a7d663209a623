"""How far an exact decomposition determines a reference case, and the comparison up to there.

An error E in the Gram matrix turns an eigenvector by at most about |E| / gap, gap being the distance to the
nearest other eigenvalue. With |E| taken as GRAM_ERROR x the largest eigenvalue, that is how far an entry of
V may be off, besides its own rounding where it is stored in half precision. So

- a token's group is determined if its two largest |V| differ by more than their errors;
- the order of two tokens of a group is determined if their saliencies, where these come from V, do.

All that is determined must be as stored. If all groups and orders are as stored, the result must be, too. If an
undetermined one differs, the result may differ, and is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prunesid_cli.selection.methods.explanation import Explanation

GRAM_ERROR = 1e-6


def entry_error(eigenvalues: Tensor) -> Tensor:
    """Falling eigenvalues [G + 1] -> how far the entries of each eigenvector may be off [G]."""
    steps = eigenvalues[:-1] - eigenvalues[1:]
    before = torch.cat([steps.new_full((1,), torch.inf), steps[:-1]])
    return GRAM_ERROR * eigenvalues[0] / torch.minimum(before, steps).clamp(min=1e-30)


def open_groups(directions: Tensor, error: Tensor) -> Tensor:
    """V [N, G], error [G] -> mask [N] of the tokens whose group is not determined."""
    magnitude = directions.float().abs()
    slack = error + magnitude * torch.finfo(directions.dtype).eps
    lead, best = (magnitude - slack).max(-1, keepdim=True)
    rival = (magnitude + slack).scatter(-1, best, -torch.inf).amax(-1, keepdim=True)
    return (rival >= lead).squeeze(-1)


def flipped(ours: Tensor, stored: Tensor, group: Tensor) -> Tensor:
    """Saliencies [N], group [N] -> mask [N, N] of the pairs of a group that come in another order."""

    def before(saliency: Tensor) -> Tensor:
        rank = saliency.argsort(descending=True, stable=True).argsort()
        return rank.unsqueeze(1) < rank

    return (before(ours) != before(stored)) & (group.unsqueeze(1) == group)


def compare(image: Explanation, result: Tensor, stored: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """Our result from the tokens and the reference of one image -> what is wrong, and what was left out and why."""
    error = entry_error(stored["eigenvalues"])
    group, score = stored["group"].long(), stored["score"]
    differs = image.group != group
    off = error[group] + score * torch.finfo(torch.float32).eps
    count_undecided = (score.unsqueeze(1) - score).abs() <= off.unsqueeze(1) + off
    swaps = flipped(image.saliency, score, group)
    findings = {
        "groups from tokens": differs & ~open_groups(stored["V"], error),
        "order from tokens": swaps & ~count_undecided,
    }
    wrong = [name for name, mask in findings.items() if mask.any()]
    if differs.any() or swaps.any():
        count = f"{int(differs.sum())} open groups, {int(swaps.sum()) // 2} near-equal saliencies differ"
        return wrong, [f"indices ({count}: eigenvalues too close)"]
    expected = stored.get("indices_fixed", stored["indices"]).long()
    return wrong + ([] if torch.equal(result, expected) else ["indices from tokens"]), []
