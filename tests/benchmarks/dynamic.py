"""Rules of a dynamic budget (Eq. 7), compared on the embedded model: `python -m tests.benchmarks.dynamic`.

Every rule gives the pictures of an exam the same average number of tokens. The paper leaves open whether lambda depends
on an image's own budget N' or on the average N, how far budgets may be from the average, and what happens within an
item. For the latter, four pictures form an item, like tiles or frames, and tokens are shared only within it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection.budget import Budget, token_bounds
from prunesid_cli.selection.methods.explanation import explain
from prunesid_cli.selection.prunesid_variants import PRUNESID
from samples.embedded_model.evaluate import ExamPicture, ExamResult, make_exam, run_exam
from tests.selection.inputs import apportion

TILES = 4
Limits = Callable[[float, int], tuple[int, int]]


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: Its name.
        limits: Bounds of a picture's budget; None: all pictures get the same.
        own: Whether lambda depends on N' rather than N.
        together: Number of pictures among which tokens are shared; None: all.
    """

    name: str
    limits: Limits | None
    own: bool = True
    together: int | None = None

    def counts(self, values: Sequence[float], mean: int, total: int) -> list[int]:
        if self.limits is None:
            return [mean] * len(values)
        size = self.together or len(values)
        groups = [values[at : at + size] for at in range(0, len(values), size)]
        return [count for group in groups for count in apportion(group, mean, *self.limits(mean, total))]

    def method(self, mean: int) -> Callable[[Tensor, Tensor | None, Sequence[int], int], list[Tensor]]:
        variant = PRUNESID if self.own else replace(PRUNESID, strength=lambda budget_with_cls, n: mean / 32)
        return lambda features, saliency, budgets, num_cls: [
            image.indices for image in explain(features, saliency, budgets, variant, num_cls)
        ]


def within(low: float, high: float) -> Limits:
    return lambda mean, n: (max(1, int(low * mean)), min(n, int(high * mean)))


RULES = (
    Rule("fixed", None),
    Rule("dynamic (as shipped)", token_bounds),
    Rule("lambda by N", token_bounds, own=False),
    Rule("3/4 to 3/2 of N", within(0.75, 1.5)),
    Rule("1/4 to 4 N", within(0.25, 4)),
    Rule("no limits", within(0, 576)),
    Rule("within four tiles", token_bounds, together=TILES),
)


def against(marks: ExamResult, base: ExamResult) -> dict[str, int]:
    """Number of questions that only one of two results has right."""
    pairs = list(zip(marks.answers, base.answers, strict=True))
    return {
        "gained": sum(ours and not theirs for (_, ours), (_, theirs) in pairs),
        "lost": sum(theirs and not ours for (_, ours), (_, theirs) in pairs),
    }


def compare(pictures: Sequence[ExamPicture], vision: Any, language: Any, means: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    pruner = Pruner(vision, Budget(), "prunesid", ())
    values = [pruner.information(picture.encoded)[0][0] for picture in pictures]
    total = pictures[0].encoded[0].layout.total
    for mean in means:
        base: ExamResult | None = None
        for rule in RULES:
            counts = rule.counts(values, mean, total)
            pruner = Pruner(vision, Budget(count=mean), rule.method(mean), ())
            marks = run_exam(pruner, language, pictures, counts)
            base = base or marks
            told: dict[str, Any] = {"mean": mean, "rule": rule.name, "average": sum(counts) / len(counts)}
            told |= {"fewest": min(counts), "most": max(counts)} | marks.scores() | against(marks, base)
            found.append(told)
            print(
                f"{mean:4} {rule.name:22} {min(counts):3}..{max(counts):3}  overall {told['overall']:.3f}"
                f"  caption {told['caption']:.3f}  coverage {told['coverage']:.3f}  +{told['gained']} -{told['lost']}",
                flush=True,
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Rules of a dynamic budget, compared on the embedded model.")
    parser.add_argument("--means", type=int, nargs="+", default=[20, 32, 63])
    parser.add_argument("--per-kind", type=int, default=200)
    parser.add_argument("--split", type=int, default=1)
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    checkpoint = resolve(options.model)
    family = load_family(checkpoint.model_type)
    placement = choose_placement("auto", "auto", "auto", load_config(checkpoint))
    vision, language = family.load_vision_half(checkpoint, placement), family.load_language_half(checkpoint, placement)
    pictures = make_exam(Pruner(vision, Budget(), "prunesid", ()), options.per_kind, options.split)
    results = compare(pictures, vision, language, options.means)
    if options.out:
        about = {
            "date": date.today().isoformat(),
            "command": f"python -m tests.benchmarks.dynamic --per-kind {options.per_kind}",
            "model": checkpoint.revision,
            "torch": torch.__version__,
            "questions": sum(len(picture.questions) for picture in pictures),
        }
        options.out.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
