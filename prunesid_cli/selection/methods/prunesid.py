"""PruneSID (arXiv 2603.09480): semantic groups, suppression within each, a share of the budget for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunesid_cli.runtime.device import to_device
from prunesid_cli.selection.group_allocation import Allocation, allocate, count, grouped_choice
from prunesid_cli.selection.linalg.per_image import each_image
from prunesid_cli.selection.methods.variants import (
    OVER_TIME,
    PRUNESID,
    PUBLISHED_LLAVA,
    PUBLISHED_QWEN,
    PruneSIDVariant,
)
from prunesid_cli.selection.nms import precedence, suppressors, survivors, survivors_together
from prunesid_cli.selection.psca import groups

if TYPE_CHECKING:
    from prunesid_cli.selection import Method

Suppression = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Explanation:
    """Why these tokens of one image were kept.

    indices     [T] the kept tokens, in the order of output
    group       [N] int64 in [0, G)
    saliency    [N] fp32
    survivor    [N] bool, of the suppression within groups
    suppressor  [N] int64, the survivor that suppressed a token; -1: none did
    redundancy  scalar, rho
    tau         scalar, the similarity above which a token suppresses another
    groups      fields [G]: tokens, survivors, bounds and tokens kept of each group
    """

    indices: Tensor
    group: Tensor
    saliency: Tensor
    survivor: Tensor
    suppressor: Tensor
    redundancy: Tensor
    tau: Tensor
    groups: Allocation


@dataclass(frozen=True)
class _Grouping:
    """Stages 1 to 4 of a batch: group, saliency, rank, survivor [B, N]; redundancy, tau [B]."""

    num_groups: int
    group: Tensor
    saliency: Tensor
    rank: Tensor
    survivor: Tensor
    redundancy: Tensor
    tau: Tensor


@dataclass(frozen=True)
class _Chosen:
    """What `explain` puts together: a batch's stages, allocation, and token indices [B, N], the kept ones first, of
    which `lengths` are."""

    stage: _Grouping
    groups: Allocation
    order: Tensor
    lengths: list[int]

    def indices(self) -> list[Tensor]:
        return [row[:length] for row, length in zip(self.order, self.lengths, strict=True)]


def prunesid(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """features [B, N, C], saliency [B, N] -> kept indices B x [T], exact decomposition, raster order."""
    return _choose(features, saliency, budgets, PRUNESID, num_cls).indices()


def over_time(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """`prunesid` over the tokens of several frames, of which those that show the same count once, however many are
    kept."""
    return _choose(features, saliency, budgets, OVER_TIME, num_cls).indices()


def published(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """The published code, made repeatable: for LLaVA, or for Qwen2-VL where there is no saliency."""
    return _choose(features, saliency, budgets, _published(saliency), num_cls).indices()


def published_qwen(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
    """The published code for Qwen2-VL, made repeatable, of a model that has a saliency: that is not looked at."""
    return _choose(features, None, budgets, PUBLISHED_QWEN, num_cls).indices()


def _published(saliency: Tensor | None) -> PruneSIDVariant:
    return PUBLISHED_QWEN if saliency is None else PUBLISHED_LLAVA


def reasons(
    method: Method, features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0
) -> list[Explanation]:
    """`explain`, for what one of the four methods above chooses."""
    recipes: dict[Method, tuple[PruneSIDVariant, Tensor | None]] = {
        prunesid: (PRUNESID, saliency),
        over_time: (OVER_TIME, saliency),
        published: (_published(saliency), saliency),
        published_qwen: (PUBLISHED_QWEN, None),
    }
    recipe, looked_at = recipes[method]
    return explain(features, looked_at, budgets, recipe, num_cls)


@torch.no_grad()
def explain(
    features: Tensor,
    saliency: Tensor | None,
    budgets: Sequence[int],
    recipe: PruneSIDVariant = PRUNESID,
    num_cls: int = 0,
) -> list[Explanation]:
    """All stages of [B, N, C], for each image. Input must be finite."""
    chosen = _choose(features, saliency, budgets, recipe, num_cls)
    stage, groups = chosen.stage, chosen.groups
    return [
        Explanation(
            indices=indices,
            group=stage.group[row],
            saliency=stage.saliency[row],
            survivor=stage.survivor[row],
            suppressor=suppressors(
                features[row].to(recipe.precision or features.dtype),
                stage.tau[row],
                stage.group[row],
                stage.rank[row],
                stage.survivor[row],
            ),
            redundancy=stage.redundancy[row],
            tau=stage.tau[row],
            groups=Allocation(*(getattr(groups, field.name)[row] for field in fields(Allocation))),
        )
        for row, indices in enumerate(chosen.indices())
    ]


@torch.no_grad()
def _choose(
    features: Tensor, saliency: Tensor | None, budgets: Sequence[int], recipe: PruneSIDVariant, num_cls: int
) -> _Chosen:
    n = features.shape[1]
    budgets_with_cls = [min(budget, n + num_cls) for budget in budgets]
    with torch.autocast(features.device.type, enabled=False):
        stage = _group(features, saliency, budgets_with_cls, recipe)
    groups = allocate(
        count(stage.group, torch.ones_like(stage.survivor), stage.num_groups),
        count(stage.group, stage.survivor, stage.num_groups),
        to_device(budgets_with_cls, features.device),
        num_cls,
    )
    choice = grouped_choice(stage.group, stage.survivor, stage.rank, groups)
    lengths = [max(budget_with_cls - num_cls, 0) for budget_with_cls in budgets_with_cls]
    return _Chosen(
        stage,
        groups,
        _ordered(choice, lengths, [recipe.ascending(budget_with_cls) for budget_with_cls in budgets_with_cls]),
        lengths,
    )


def _group(
    features: Tensor, saliency: Tensor | None, budgets_with_cls: Sequence[int], recipe: PruneSIDVariant
) -> _Grouping:
    n, device = features.shape[1], features.device
    directions = recipe.directions(
        features, [min(recipe.groups(budget_with_cls), n) for budget_with_cls in budgets_with_cls], saliency is None
    )
    strengths = to_device([recipe.strength(budget_with_cls, n) for budget_with_cls in budgets_with_cls], device)

    def suppressed(rows: int | slice, suppress: Suppression) -> tuple[Tensor, ...]:
        own = groups(directions[rows])
        score = recipe.saliency(None if saliency is None else saliency[rows], directions[rows])
        rank = precedence(score)
        tokens = features[rows].to(recipe.precision or features.dtype)
        redundancy = recipe.redundancy(tokens)
        tau = (strengths[rows] * redundancy.float()).to(redundancy.dtype).float().clamp(max=recipe.alike)
        if recipe.alike < math.inf:
            rank = _copies_last(rank, suppress(tokens, torch.full_like(tau, recipe.alike), own, rank, score >= 0))
        return own, score, rank, suppress(tokens, tau, own, rank, score > 0), redundancy.float(), tau

    if recipe.together or (recipe.together is None and device.type != "cpu"):
        columns = suppressed(slice(None), survivors_together)
    else:
        images = each_image(lambda row: suppressed(row, survivors), len(budgets_with_cls), device)
        columns = tuple(torch.stack(column) for column in zip(*images, strict=True))
    return _Grouping(directions.shape[-1], *columns)


def _copies_last(rank: Tensor, original: Tensor) -> Tensor:
    """rank, original [..., N] -> places with the originals first, else as they were [..., N]."""
    return precedence(-(rank + rank.shape[-1] * ~original))


def _ordered(choice: Tensor, lengths: Sequence[int], ascending: Sequence[bool]) -> Tensor:
    """Token indices [B, N], the wanted first -> the same, with the `lengths` wanted ones of an image in raster order
    where that is asked for."""
    n, device = choice.shape[1], choice.device
    wanted = torch.arange(n, device=device) < to_device(lengths, device)[:, None]
    raster = torch.where(wanted, choice, choice + n).sort(-1).values % n
    return torch.where(to_device(ascending, device)[:, None], raster, choice)
