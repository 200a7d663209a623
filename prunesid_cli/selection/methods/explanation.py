"""Why PruneSID keeps the tokens that it keeps: all intermediate results of one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunesid_cli.selection.group_allocation import Allocation
from prunesid_cli.selection.group_selection import select_by_group
from prunesid_cli.selection.methods.prunesid import prunesid
from prunesid_cli.selection.methods.prunesid_over_time import prunesid_over_time
from prunesid_cli.selection.methods.published import published, published_qwen, published_variant
from prunesid_cli.selection.nms import find_suppressors
from prunesid_cli.selection.prunesid_variants import OVER_TIME, PRUNESID, PUBLISHED_QWEN, PruneSIDVariant

if TYPE_CHECKING:
    from prunesid_cli.selection import Method


@dataclass(frozen=True)
class Explanation:
    """The intermediate results of one image.

    Attributes:
        indices: [T] int64, the kept tokens, in the order in which the method returns them.
        group: [N] int64 in [0, G), the group of each token.
        saliency: [N] fp32.
        survivor: [N] bool, the survivors of the suppression within groups.
        suppressor: [N] int64, the survivor that suppressed a token; -1: none did.
        redundancy: Scalar, rho.
        tau: Scalar, the similarity above which a token suppresses another.
        groups: Fields [G]: tokens, survivors, bounds and kept tokens of each group.
    """

    indices: Tensor
    group: Tensor
    saliency: Tensor
    survivor: Tensor
    suppressor: Tensor
    redundancy: Tensor
    tau: Tensor
    groups: Allocation


def explain_method(
    method: Method, features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0
) -> list[Explanation]:
    """Explain what a method of the PruneSID family keeps.

    Args:
        method: `prunesid`, `prunesid_over_time`, `published` or `published_qwen`.
        features: [B, N, C], finite.
        saliency: [B, N], or None.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        The explanation of each image.
    """
    variants: dict[Method, PruneSIDVariant] = {
        prunesid: PRUNESID,
        prunesid_over_time: OVER_TIME,
        published: published_variant(saliency),
        published_qwen: PUBLISHED_QWEN,
    }
    return explain(features, saliency, budgets, variants[method], num_cls)


@torch.no_grad()
def explain(
    features: Tensor,
    saliency: Tensor | None,
    budgets: Sequence[int],
    variant: PruneSIDVariant = PRUNESID,
    num_cls: int = 0,
) -> list[Explanation]:
    """Explain what a variant of PruneSID keeps. The arguments are those of `explain_method`."""
    selection = select_by_group(features, saliency, budgets, variant, num_cls)
    stages, groups = selection.suppression, selection.allocation
    return [
        Explanation(
            indices=indices,
            group=stages.group[row],
            saliency=stages.saliency[row],
            survivor=stages.survivor[row],
            suppressor=find_suppressors(
                features[row].to(variant.precision or features.dtype),
                stages.tau[row],
                stages.group[row],
                stages.rank[row],
                stages.survivor[row],
            ),
            redundancy=stages.redundancy[row],
            tau=stages.tau[row],
            groups=Allocation(*(getattr(groups, field.name)[row] for field in fields(Allocation))),
        )
        for row, indices in enumerate(selection.indices)
    ]
