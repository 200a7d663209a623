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
from collections.abc import Sequence
from dataclasses import dataclass
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
from prunesid_cli.selection.methods.scope import extend_by_coverage
from prunesid_cli.selection.prunesid_variants import PRUNESID
from prunesid_cli.selection.psca import assign_groups, exact_directions
from prunesid_cli.selection.similarity import cosine_similarity
from samples.embedded_model.evaluate import ExamResult, make_exam, run_exam

if TYPE_CHECKING:
    from prunesid_cli.selection import Method


@dataclass(frozen=True)
class Variant:
    """Tokens that add most to a coverage, one by one.

    Attributes:
        choose: Exponent of the saliency that a token's gain in coverage is multiplied by.
        cover: Exponent of the saliency that a token counts with where it is covered.
        centred: Whether the mean token is subtracted before tokens are compared.
        led: Whether each of PruneSID's groups keeps its most salient token first.
    """

    choose: float = 1.0
    cover: float = 0.5
    centred: bool = False
    led: bool = False

    def __call__(
        self, features: Tensor, saliency: Tensor | None, budgets: Sequence[int], num_cls: int = 0
    ) -> list[Tensor]:
        assert saliency is not None, "the embedded model has a saliency"
        kept = list[Tensor]()
        for tokens, weight, count in zip(
            features, saliency.float(), keep_counts(features, budgets, num_cls), strict=True
        ):
            similarity = cosine_similarity((tokens - tokens.mean(0) if self.centred else tokens)[None])
            leaders = self._leaders(tokens, weight, count) if self.led else torch.zeros_like(weight, dtype=torch.bool)
            scaled = similarity * weight**self.cover
            mask = extend_by_coverage(scaled, weight[None] ** self.choose, leaders[None], count)
            kept += mask_to_indices(mask, count)
        return kept

    @staticmethod
    def _leaders(tokens: Tensor, saliency: Tensor, count: int) -> Tensor:
        """Mask [N] of the most salient token of each group, at most `count`."""
        group = assign_groups(exact_directions(tokens[None], [PRUNESID.num_groups(count)]))[0]
        leaders = torch.zeros_like(saliency, dtype=torch.bool)
        for index in saliency.argsort(descending=True, stable=True).tolist():
            if leaders.sum() < count and not leaders[group == group[index]].any():
                leaders[index] = True
        return leaders


VARIANTS: dict[str, Method] = {
    "prunesid": load_method("prunesid"),
    "prunesid-plus": load_method("prunesid-plus"),
    "covered tokens count by root of saliency": Variant(),
    "what is covered counts alike (SCOPE)": Variant(cover=0),
    "what is covered counts by saliency": Variant(cover=1),
    "tokens are chosen alike": Variant(choose=0, cover=1),
    "root of saliency in both": Variant(choose=0.5),
    "centred tokens": Variant(centred=True),
    "groups keep their most salient token": Variant(led=True),
    "groups do, and all count alike": Variant(led=True, cover=0),
    "divprune": load_method("divprune"),
    "vispruner": load_method("vispruner"),
}


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
            print(f"{keep:4} {name:40} {one['overall']:.3f} {change:10} {one['coverage']:.3f} {seen}", flush=True)
    if options.out:
        facts = {"date": date.today().isoformat(), "model": checkpoint.revision, "torch": torch.__version__}
        facts["command"] = "python -m tests.benchmarks.plus " + shlex.join(sys.argv[1:])
        options.out.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
