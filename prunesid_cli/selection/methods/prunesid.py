"""PruneSID (arXiv 2603.09480): groups of tokens of the same meaning, suppression within each, a share for each.

See `selection/group_selection.py` for the stages and `variants.py` for the choices.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunesid_cli.selection.group_selection import select_by_group
from prunesid_cli.selection.prunesid_variants import PRUNESID


def prunesid(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select tokens by PruneSID as the paper defines it, with the exact decomposition.

    Args:
        features: [B, N, C].
        saliency: [B, N]; None: how much a token loads on the direction of its group takes its place.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        Kept indices B x [T], in raster order.
    """
    return select_by_group(features, saliency, budgets, PRUNESID, num_cls).indices
