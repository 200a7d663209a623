"""PruneSID (arXiv 2603.09480): semantic groups, suppression within each, a share of the budget for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunesid_cli.selection.allocation import Allocation, allocate, count, grouped_choice
from prunesid_cli.selection.nms import precedence, survivors
from prunesid_cli.selection.parallel import each_image
from prunesid_cli.selection.psca import groups
from prunesid_cli.selection.recipe import PRUNESID, PUBLISHED_LLAVA, PUBLISHED_QWEN, Recipe
from prunesid_cli.selection.similarity import unit_tokens


@dataclass(frozen=True)
class Explanation:
    """Why these tokens of one image were kept.

    indices     [T] the kept tokens, in the order of output
    group       [N] int64 in [0, G)
    saliency    [N] fp32
    survivor    [N] bool, of the suppression within groups
    redundancy  scalar, rho
    tau         scalar, the similarity above which a token suppresses another
    groups      fields [G]: tokens, survivors, bounds and tokens kept of each group
    """

    indices: Tensor
    group: Tensor
    saliency: Tensor
    survivor: Tensor
    redundancy: Tensor
    tau: Tensor
    groups: Allocation


@dataclass(frozen=True)
class _Grouping:
    """Stages 1 to 4 of a batch: group, saliency, rank, survivor [B, N]; redundancy, tau [B]."""

    group: Tensor
    saliency: Tensor
    rank: Tensor
    survivor: Tensor
    redundancy: Tensor
    tau: Tensor
    num_groups: int


def prunesid(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], reserved: int = 0) -> list[Tensor]:
    """features [B, N, C], saliency [B, N] -> kept indices B x [T], exact decomposition, raster order."""
    return [image.indices for image in explain(features, saliency, budgets, PRUNESID, reserved)]


def published(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], reserved: int = 0) -> list[Tensor]:
    """The published code, made repeatable: for LLaVA, or for Qwen2-VL where there is no saliency."""
    recipe = PUBLISHED_QWEN if saliency is None else PUBLISHED_LLAVA
    return [image.indices for image in explain(features, saliency, budgets, recipe, reserved)]


@torch.no_grad()
def explain(
    features: Tensor,
    saliency: Tensor | None,
    budgets: Sequence[int],
    recipe: Recipe = PRUNESID,
    reserved: int = 0,
) -> list[Explanation]:
    """All stages, for one image after the other of [B, N, C]. Input must be finite."""
    n = features.shape[1]
    needs = [min(budget, n + reserved) for budget in budgets]
    with torch.autocast(features.device.type, enabled=False):
        stage = _group(features, saliency, needs, recipe)
    groups = allocate(
        count(stage.group, torch.ones_like(stage.survivor), stage.num_groups),
        count(stage.group, stage.survivor, stage.num_groups),
        torch.tensor(needs, device=features.device),
        reserved,
    )
    choice = grouped_choice(stage.group, stage.survivor, stage.rank, groups)
    return [
        _explanation(row, stage, groups, _output(choice[row], need, recipe, reserved)) for row, need in enumerate(needs)
    ]


def _group(features: Tensor, saliency: Tensor | None, needs: Sequence[int], recipe: Recipe) -> _Grouping:
    n, device = features.shape[1], features.device
    directions = recipe.directions(features, [min(recipe.groups(need), n) for need in needs], saliency is None)

    def suppressed(row: int) -> tuple[Tensor, ...]:
        own = groups(directions[row])
        score = recipe.saliency(None if saliency is None else saliency[row], directions[row])
        rank = precedence(score)
        unit = unit_tokens(features[row], recipe.precision or features.dtype)
        redundancy = recipe.redundancy(unit)
        tau = (recipe.strength(needs[row], n) * redundancy.float()).to(redundancy.dtype).float()
        return own, score, rank, survivors(unit, tau, own, rank, score > 0), redundancy.float(), tau

    images = each_image(suppressed, len(needs), device)
    group, score, rank, survivor, redundancy, tau = (torch.stack(column) for column in zip(*images, strict=True))
    return _Grouping(group, score, rank, survivor, redundancy, tau, directions.shape[-1])


def _output(choice: Tensor, need: int, recipe: Recipe, reserved: int) -> Tensor:
    """Token indices [N], the wanted first -> the kept ones [T] in the recipe's order."""
    kept = choice[: max(need - reserved, 0)]
    return kept.sort().values if recipe.ascending(need) else kept


def _explanation(row: int, stage: _Grouping, groups: Allocation, indices: Tensor) -> Explanation:
    by_group = Allocation(
        groups.size[row], groups.survivors[row], groups.lower[row], groups.upper[row], groups.taken[row]
    )
    return Explanation(
        indices=indices,
        group=stage.group[row],
        saliency=stage.saliency[row],
        survivor=stage.survivor[row],
        redundancy=stage.redundancy[row],
        tau=stage.tau[row],
        groups=by_group,
    )
