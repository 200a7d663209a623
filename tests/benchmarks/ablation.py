"""Ablation of the optimizations of selection, one image at a time on one core: `python -m tests.benchmarks.ablation`.

Each variant leaves out one optimization. Variants take turns, image by image, and CPU time is measured, so that other
work on the machine has little influence. Prints milliseconds per image and, with --out, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import date
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from prunesid_cli.selection import group_selection, select
from prunesid_cli.selection.linalg import gram, krylov
from prunesid_cli.selection.nms import find_survivors_batched
from tests.benchmarks.selection import KINDS, WIDTH
from tests.selection.inputs import attention

TOKENS = 576


def whole_decomposition(matrices: Tensor, wanted: Tensor, criterion: object) -> Tensor:
    return torch.linalg.eigh(matrices).eigenvectors[..., -wanted.shape[-1] :].flip(-1).mT


def to_the_last_digit(matrices: Tensor, wanted: Tensor, criterion: object) -> Tensor:
    return krylov.leading_eigenvectors(matrices, wanted)


def all_similarities(tokens: Tensor, tau: Tensor, *others: Tensor) -> Tensor:
    """group, rank, candidate."""
    return find_survivors_batched(tokens[None], tau[None], *(other[None] for other in others))[0]


def all_products(matrix: Tensor, out: Tensor) -> None:
    out.copy_(matrix @ matrix.mT)


def in_double_precision(matrices: Tensor) -> gram.Gram:
    exact = matrices.double()
    return gram.Gram(exact @ exact.mT, torch.zeros(len(matrices)))


WITHOUT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing left out": ExitStack,
    "Krylov space": lambda: patch.object(gram, "leading_eigenvectors", whole_decomposition),
    "stop when no group can change": lambda: patch.object(gram, "leading_eigenvectors", to_the_last_digit),
    "Gram matrix in fp32": lambda: patch.object(gram, "gram", in_double_precision),
    "Gram matrix by symmetric blocks": lambda: patch.object(gram, "_square_in_fp32", all_products),
    "similarities within groups only": lambda: patch.object(group_selection, "find_survivors", all_similarities),
}


def measure(kind: str, budget_with_cls: int, images: int, rounds: int) -> dict[str, float]:
    """Median milliseconds per image of each variant."""
    inputs = [(KINDS[kind](seed, TOKENS, WIDTH), attention(seed, TOKENS)) for seed in range(images)]
    spent: dict[str, list[float]] = {name: [] for name in WITHOUT}
    for turn in range(rounds + 1):
        for features, saliency in inputs:
            for name, left_out in WITHOUT.items():
                with left_out():
                    began = time.process_time()
                    select(features, saliency, [budget_with_cls], num_cls=1)
                    spent[name] += [1000 * (time.process_time() - began)] * (turn > 0)  # the first is to warm up
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Ablation of the optimizations of selection.")
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 192])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for kind in KINDS:
        for budget_with_cls in options.budgets:
            found = measure(kind, budget_with_cls, options.images, options.rounds)
            results.append({"kind": kind, "need": budget_with_cls, "ms": found})
            for name, ms in found.items():
                print(
                    f"{kind:5} {budget_with_cls:4}  {name:32} {ms:7.1f} ms  {ms - found['nothing left out']:+6.1f}",
                    flush=True,
                )
    if options.out:
        facts = {"date": date.today().isoformat(), "command": "python -m tests.benchmarks.ablation"}
        facts |= {"torch": torch.__version__, "processor": torch.backends.cpu.get_cpu_capability()}
        options.out.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
