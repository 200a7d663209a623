"""Ablation of prunesid-plus on the embedded model: `python -m tests.benchmarks.plus --split 21`.

Variants were tuned on split 21 and chosen on split 22, whose scenes were not used before. Every variant gets the same
pictures, encoded once, and the same questions. For each budget, prints the share of right answers, the share of things
that have a kept patch, and the questions gained and lost against PruneSID; with --out, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection import load_method
from prunesid_cli.selection.batching import keep_counts, mask_to_indices
from prunesid_cli.selection.budget import Budget
from prunesid_cli.selection.methods.explanation import explain
from prunesid_cli.selection.methods.prunesid_over_time import prunesid_over_time
from prunesid_cli.selection.methods.scope import extend_by_coverage
from prunesid_cli.selection.prunesid_variants import OVER_TIME
from prunesid_cli.selection.similarity import cosine_similarity
from samples.embedded_model.evaluate import ExamResult, make_exam, run_exam

if TYPE_CHECKING:
    from prunesid_cli.selection import Method

Score = Callable[[Tensor, Tensor], Tensor]
"""PruneSID's score of each token [N], and which of them survive its suppression [N] -> what gains are multiplied by."""


def salient(score: Tensor, survivor: Tensor) -> Tensor:
    return score


def root(score: Tensor, survivor: Tensor) -> Tensor:
    return score.sqrt()


def alike(score: Tensor, survivor: Tensor) -> Tensor:
    return torch.ones_like(score)


def surviving(score: Tensor, survivor: Tensor) -> Tensor:
    """Suppressed tokens are taken after all survivors."""
    return torch.where(survivor, score, 1e-6 * score)


def find_leaders(group: Tensor, score: Tensor, max_leaders: int) -> Tensor:
    """Return the mask [B, N] of the highest scored token of each group, of the `max_leaders` highest scored groups.

    Args:
        group: [B, N] int64.
        score: [B, N].
        max_leaders: Largest number of leaders of an image.
    """
    order = score.argsort(dim=-1, descending=True, stable=True)
    ordered_group = group.gather(-1, order)
    first = ~(ordered_group.unsqueeze(-1) == ordered_group.unsqueeze(-2)).tril(-1).any(-1)
    return torch.zeros_like(first).scatter(-1, order, first & (first.cumsum(-1) <= max_leaders))


def variant(lead: bool, worth: Score) -> Method:
    """A variant: whether each group keeps its most salient token, and what gains in coverage are multiplied by."""

    def chosen(features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0) -> list[Tensor]:
        counts = keep_counts(features, budgets, num_cls)
        explanations = explain(features, saliency, budgets, OVER_TIME, num_cls)
        kept = list[Tensor]()
        for tokens, image, count in zip(features, explanations, counts, strict=True):
            leaders = find_leaders(image.group[None], image.saliency[None], count * lead)
            weight = worth(image.saliency, image.survivor)[None]
            mask = extend_by_coverage(cosine_similarity(tokens[None]), weight, leaders, count)
            kept += mask_to_indices(mask, count)
        return kept

    return chosen


VARIANTS: dict[str, Method] = {
    "prunesid": load_method("prunesid"),
    "prunesid-plus": load_method("prunesid-plus"),
    "prunesid, threshold capped": prunesid_over_time,
    "scope": load_method("scope"),
    "scope after leaders": variant(True, salient),
    "scope after leaders, suppressed ones wait": variant(True, surviving),
    "scope after leaders, root of saliency": variant(True, root),
    "coverage after leaders": variant(True, alike),
    "divprune": load_method("divprune"),
}
"""Those capped suppress above .9 at most, so that a threshold above all similarities does not switch itself off."""


def compared(marks: ExamResult, base: ExamResult) -> dict[str, float]:
    """Scores, and the numbers of questions about scenes and of things that are gained and lost against `base`."""
    pairs = [(new, old) for (kind, new), (_, old) in zip(marks.answers, base.answers, strict=True) if kind != "refusal"]
    things = list(zip(marks.covered, base.covered, strict=True))
    found = {"questions": len(pairs), "gained": pairs.count((True, False)), "lost": pairs.count((False, True))}
    found |= {"things": len(things), "seen more": things.count((True, False)), "seen less": things.count((False, True))}
    return marks.scores() | found


def main() -> None:
    parser = argparse.ArgumentParser(description="Ablation of prunesid-plus.")
    parser.add_argument("--per-kind", type=int, default=40)
    parser.add_argument("--hard", action="store_true", help="ask about hard scenes, and pairs of them")
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--split", type=int, default=21, help="split of the scenes")
    parser.add_argument("--keep", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = resolve(options.model)
    family = load_family(checkpoint.model_type)
    placement = choose_placement("cpu", "auto", "auto", load_config(checkpoint))
    vision, language = family.load_vision_half(checkpoint, placement), family.load_language_half(checkpoint, placement)
    pictures = make_exam(Pruner(vision, Budget(), "prunesid", ()), options.per_kind, options.split, options.hard)
    results: dict[str, dict[str, dict[str, float]]] = {}
    for keep in options.keep:
        marked = partial(run_exam, language=language, pictures=pictures)
        base = marked(Pruner(vision, Budget.parse(str(keep)), "prunesid", ()))
        for name in options.variants:
            marks = base if name == "prunesid" else marked(Pruner(vision, Budget.parse(str(keep)), VARIANTS[name], ()))
            one = results.setdefault(str(keep), {})[name] = compared(marks, base)
            change = f"+{one['gained']} -{one['lost']}"
            seen = f"+{one['seen more']} -{one['seen less']}"
            print(f"{keep:4} {name:32} {one['overall']:.3f} {change:10} {one['coverage']:.3f} {seen}", flush=True)
    if options.out:
        facts = {"date": date.today().isoformat(), "model": checkpoint.revision, "torch": torch.__version__}
        facts["command"] = "python -m tests.benchmarks.plus " + shlex.join(sys.argv[1:])
        options.out.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
