"""Select the visual tokens to keep or to merge: tensors in, indices out.

Selection knows no model, and imports torch only when it is called. CONTRIBUTING.md says how to add a method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from prunesid_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from prunesid_cli.selection.result import Selection

    Method = Callable[[Tensor, Tensor | None, Sequence[int], int], Sequence[Tensor | Selection]]


@dataclass(frozen=True)
class MethodInfo:
    """A selection method.

    Attributes:
        path: "module:function" in `methods/`.
        groups_tokens: Whether it groups tokens and suppresses some in each group, which `methods.explanation` explains.
        merges_tokens: Whether it merges tokens into kept ones, which are no rows of the stock model then.
    """

    path: str
    groups_tokens: bool = False
    merges_tokens: bool = False


METHODS = {
    "prunesid": MethodInfo("prunesid:prunesid", groups_tokens=True),
    "prunesid-published": MethodInfo("published:published", groups_tokens=True),
    "prunesid-plus": MethodInfo("plus:plus"),
    "random": MethodInfo("baselines:random"),
    "grid": MethodInfo("baselines:grid"),
    "saliency": MethodInfo("baselines:most_salient"),
    "divprune": MethodInfo("divprune:divprune"),
    "visionzip": MethodInfo("visionzip:visionzip", merges_tokens=True),
    "vispruner": MethodInfo("vispruner:vispruner"),
    "scope": MethodInfo("scope:scope"),
}
GROUPING_METHODS = tuple(name for name, info in METHODS.items() if info.groups_tokens)


def load_method(name: str) -> Method:
    """Import the function of a method.

    Args:
        name: A key of METHODS.

    Raises:
        UsageError: There is no method of this name.
    """
    if name not in METHODS:
        raise UsageError(f"no selection method called '{name}'", hint=f"one of: {', '.join(METHODS)}")
    module, function = METHODS[name].path.split(":")
    method: Method = getattr(import_module(f"{__name__}.methods.{module}"), function)
    return method


def select(
    features: Tensor,
    saliency: Tensor | None,
    budgets: Sequence[int],
    method: str | Method = "prunesid",
    num_cls: int = 0,
) -> list[Tensor]:
    """Check the input and select the visual tokens to keep of each image of a batch.

    The arguments are those of `select_batch`.

    Returns:
        Kept indices B x [T] int64. A token into which a method merges others is among them once.

    Raises:
        ValueError: The shapes do not fit together.
        NonFiniteError: Some value is not finite; `rows` says in which images.
    """
    from prunesid_cli.selection.validation import check_finite, check_shapes

    check_shapes(features, saliency, budgets, num_cls)
    check_finite(features, saliency)
    return [selection.indices for selection in select_batch(features, saliency, budgets, method, num_cls)]


def select_batch(
    features: Tensor,
    saliency: Tensor | None,
    budgets: Sequence[int],
    method: str | Method = "prunesid",
    num_cls: int = 0,
) -> list[Selection]:
    """Select the visual tokens to keep or to merge of each image of a batch.

    The result of an image does not depend on the other images of its batch.

    Args:
        features: [B, N, C], finite.
        saliency: [B, N], finite; None if the model offers none.
        budgets: Tokens to keep of each image, CLS included.
        method: A key of METHODS, or a function like theirs; it is called only for budgets below N + num_cls.
        num_cls: Number of tokens (0, or 1 for CLS) that the caller keeps besides and that a budget counts.

    Returns:
        The selection of each image, of T = min(budget - num_cls, N) tokens.
    """
    import torch

    from prunesid_cli.runtime.device import to_fp64_device
    from prunesid_cli.selection.result import Selection

    prune = load_method(method) if isinstance(method, str) else method
    n, device = features.shape[1], features.device
    selections = [Selection(torch.arange(n, device=device))] * len(budgets)
    rows = [row for row, budget in enumerate(budgets) if budget - num_cls < n]
    if rows:
        subset = slice(None) if len(rows) == len(budgets) else rows  # a slice copies nothing
        pruned = prune(
            to_fp64_device(features[subset].detach()),
            None if saliency is None else to_fp64_device(saliency[subset].detach()),
            [budgets[row] for row in rows],
            num_cls,
        )
        for row, kept in zip(rows, pruned, strict=True):
            selections[row] = kept if isinstance(kept, Selection) else Selection(kept)
    return [selection.to(device) for selection in selections]
