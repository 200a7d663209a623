"""Which visual tokens to keep, or merge: tensors in, indices out. Knows no model; imports torch only when called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from prunesid_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from prunesid_cli.selection.result import Selection

    Method = Callable[[Tensor, Tensor | None, Sequence[int], int], Sequence[Tensor | Selection]]

METHODS = {
    "prunesid": "prunesid:prunesid",
    "prunesid-published": "prunesid:published",
    "prunesid-plus": "plus:plus",
    "random": "baselines:random",
    "grid": "baselines:grid",
    "saliency": "baselines:saliency",
    "divprune": "divprune:divprune",
    "visionzip": "visionzip:visionzip",
    "vispruner": "vispruner:vispruner",
    "scope": "scope:scope",
}
SUPPRESSING = ("prunesid", "prunesid-published")
"""Methods that put tokens into groups and suppress within them: `prunesid.reasons` says how."""
GROUPED = (*SUPPRESSING, "prunesid-plus")
"""Methods that put tokens into groups."""


def load_method(name: str) -> Method:
    """The function behind a name of METHODS."""
    if name not in METHODS:
        raise UsageError(f"no selection method called {name!r}", hint=f"one of: {', '.join(METHODS)}")
    module, function = METHODS[name].split(":")
    method: Method = getattr(import_module(f"{__name__}.methods.{module}"), function)
    return method


def select(
    features: Tensor,
    saliency: Tensor | None,
    budgets: Sequence[int],
    method: str | Method = "prunesid",
    num_cls: int = 0,
) -> list[Tensor]:
    """The indices of `choose` alone, B x [T] int64: what a method merges with others is among them once.

    Raises:
        NonFiniteError: with `rows`, the images of which something is not finite.
    """
    from prunesid_cli.selection.validation import check_finite, check_shapes

    check_shapes(features, saliency, budgets, num_cls)
    check_finite(features, saliency)
    return [kept.indices for kept in select_batch(features, saliency, budgets, method, num_cls)]


def select_batch(
    features: Tensor,
    saliency: Tensor | None,
    budgets: Sequence[int],
    method: str | Method = "prunesid",
    num_cls: int = 0,
) -> list[Selection]:
    """features [B, N, C], saliency [B, N] or None, a budget an image -> what is kept of each. All must be finite.

    `method` is a name of METHODS or a function like those behind the names, which gets budgets below N + reserved.

    `reserved` is the number of tokens (0, or 1 for CLS) that the caller keeps besides and that the budget
    counts, so T = min(budget - reserved, N). An image's result does not depend on the others of its batch.
    """
    import torch

    from prunesid_cli.selection.psca import to_fp64_device
    from prunesid_cli.selection.result import Selection

    prune = load_method(method) if isinstance(method, str) else method
    n = features.shape[1]
    kept = [Selection(torch.arange(n, device=features.device))] * len(budgets)
    rows = [row for row, budget in enumerate(budgets) if budget - num_cls < n]
    if rows:
        some = slice(None) if len(rows) == len(budgets) else rows
        pruned = prune(
            to_fp64_device(features[some].detach()),
            None if saliency is None else to_fp64_device(saliency[some].detach()),
            [budgets[row] for row in rows],
            num_cls,
        )
        for row, one in zip(rows, pruned, strict=True):
            kept[row] = one if isinstance(one, Selection) else Selection(one)
    return [one.to(features.device) for one in kept]
