"""PruneSID for windows of frames: copies of a token, in the same frame or in another, are kept last.

An addition of this project to PruneSID (arXiv 2603.09480); tests/benchmarks says what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunesid_cli.selection.group_selection import select_by_group
from prunesid_cli.selection.prunesid_variants import OVER_TIME


def prunesid_over_time(
    features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0
) -> list[Tensor]:
    """Select from the tokens of several frames; tokens that show the same count once, whatever the budget.

    Args:
        features: [B, N, C], the tokens of all frames of a window.
        saliency: [B, N]; None: how much a token loads on the direction of its group takes its place.
        budgets: Tokens to keep of each window, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        Kept indices B x [T], in raster order, frame by frame.
    """
    return select_by_group(features, saliency, budgets, OVER_TIME, num_cls).indices
