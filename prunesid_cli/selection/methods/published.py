"""The published code of PruneSID (arXiv 2603.09480), made repeatable, without its duplicates.

`variants.py` says how it differs from the paper, which `prunesid` follows.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from prunesid_cli.selection.group_selection import select_by_group
from prunesid_cli.selection.prunesid_variants import PUBLISHED_LLAVA, PUBLISHED_QWEN, PruneSIDVariant


def published(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select tokens as the published code does: that for LLaVA, or without saliency that for Qwen2-VL.

    Args:
        features: [B, N, C]; the result depends on their precision.
        saliency: [B, N], or None.
        budgets: Tokens to keep of each image, CLS included.
        num_cls: Number of CLS tokens that a budget counts.

    Returns:
        Kept indices B x [T], group by group; in raster order for Qwen2-VL and budgets above 150.
    """
    return select_by_group(features, saliency, budgets, published_variant(saliency), num_cls).indices


def published_qwen(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """Select tokens as the published code for Qwen2-VL does. It ignores the saliency; the rest is as in `published`."""
    return select_by_group(features, saliency, budgets, PUBLISHED_QWEN, num_cls).indices


def published_variant(saliency: Tensor | None) -> PruneSIDVariant:
    """Return the variant that `published` runs."""
    return PUBLISHED_QWEN if saliency is None else PUBLISHED_LLAVA
