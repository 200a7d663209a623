"""Speed and memory of selection on this machine: `python -m tests.benchmarks.selection [--published PATH]`.

PATH is a checkout of the published code. Without it, selection is compared with our seeded version of that code, which
does the same work without its loops. Every figure comes from a separate process, so that peak memory is that of one
method; the methods take turns. On a busy machine wall-clock time is unreliable: run with OMP_NUM_THREADS=1 and compare
CPU time. Inputs have the spectrum of a photograph (`scene`: a dominant direction, then a power law) or the worst one
(`flat`: some hundred directions of equal weight). Prints ratios and, with --out, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import torch

from prunesid_cli.selection import select
from tests.benchmarks.memory import growth
from tests.benchmarks.published import load_published
from tests.selection.inputs import attention, scene_like, tokens

WIDTH = 1024
KINDS = {"scene": scene_like, "flat": tokens}
ROUNDS, SECONDS = 2, 2.0
"""Turns of each method, and CPU seconds within a turn, in which it runs repeatedly."""


@dataclass(frozen=True)
class Case:
    """One method on one kind and size of input; `published` is the checkout if the method is the published code."""

    method: str
    kind: str
    images: int
    budget_with_cls: int
    tokens: int = 576
    published: str | None = None


def measure(case: Case) -> dict[str, Any]:
    """Seconds of every run, as wall-clock and CPU time, and growth of memory in MB. For a fresh process."""
    _run(Case(case.method, "flat", 1, 8, 24, case.published))()  # what comes once is not the method's
    run = _run(case)
    grown = growth(run)
    seconds, busy = list[float](), list[float]()
    while sum(busy) < SECONDS:
        began, used = time.perf_counter(), time.process_time()
        run()
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - used)
    return {"seconds": seconds, "busy": busy, "peak_mb": grown}


def _run(case: Case) -> Callable[[], object]:
    """A function that runs the method on inputs made beforehand."""
    features = torch.cat([KINDS[case.kind](seed, case.tokens, WIDTH) for seed in range(case.images)])
    saliency = torch.cat([attention(seed, case.tokens) for seed in range(case.images)])
    if case.published:
        rival = load_published(Path(case.published))
        return lambda: rival(features, saliency, case.budget_with_cls)
    return lambda: select(features, saliency, [case.budget_with_cls] * case.images, case.method, 1)


def in_a_process(case: Case) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.benchmarks.selection", "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def compare(cases: list[Case]) -> list[dict[str, Any]]:
    """Median and least milliseconds, CPU time, and peak memory of each case; the cases take turns."""
    turns = [[in_a_process(case) for case in cases] for _ in range(ROUNDS)]
    found = []
    for i, case in enumerate(cases):
        seconds = [1000 * second for turn in turns for second in turn[i]["seconds"]]
        busy = [1000 * second for turn in turns for second in turn[i]["busy"]]
        told: dict[str, Any] = {"ms": statistics.median(seconds), "least_ms": min(seconds), "runs": len(seconds)}
        told |= {"busy_ms": statistics.median(busy), "peak_mb": max(turn[i]["peak_mb"] for turn in turns)}
        found.append({name: value for name, value in asdict(case).items() if name != "published"} | told)
    return found


def against(
    published: str | None, kinds: list[str], images: list[int], budgets_with_cls: list[int]
) -> Iterator[dict[str, Any]]:
    """Our selection and the other code at each size."""
    name = "published code" if published else "our mirror of the published code"
    print(f"\n{'kind':5} {'images':>6} {'kept':>5} {'ours':>12} {name:>34} {'faster':>8} {'of cores':>8} {'leaner':>8}")
    for kind, count, budget_with_cls in product(kinds, images, budgets_with_cls):
        ours, rival = compare(
            [
                Case("prunesid", kind, count, budget_with_cls),
                Case("prunesid-published", kind, count, budget_with_cls, published=published),
            ]
        )
        faster, cores = rival["ms"] / ours["ms"], rival["busy_ms"] / ours["busy_ms"]
        leaner = rival["peak_mb"] / max(ours["peak_mb"], 1)
        print(
            f"{kind:5} {count:6} {budget_with_cls:5} {ours['ms']:9.1f} ms {rival['ms']:31.1f} ms {faster:7.1f}x "
            f"{cores:7.1f}x {leaner:7.1f}x   ({ours['peak_mb']:.0f} MB, {rival['peak_mb']:.0f} MB)",
            flush=True,
        )
        yield {"ours": ours, "rival": rival, "faster": faster, "faster_by_cores": cores, "leaner": leaner}


def curve(sizes: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Time of one image by (tokens, budget)."""
    print(f"\n{'tokens':>6} {'kept':>5} {'groups':>6} {'ours':>12}")
    for size, budget_with_cls in sizes:
        (ours,) = compare([Case("prunesid", "scene", 1, budget_with_cls, size)])
        print(
            f"{size:6} {budget_with_cls:5} {budget_with_cls // 4:6} {ours['ms']:9.1f} ms   ({ours['peak_mb']:.0f} MB)",
            flush=True,
        )
        yield ours


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of selection on this machine.")
    parser.add_argument("--published", help="a checkout of the published code to compare with")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 5, 16])
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 128, 192])
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--sizes", type=int, nargs="*", default=[144, 576, 1024, 2304, 4096, 16384], help="at 11%%")
    curve_budgets = [16, 32, 64, 128, 192, 256, 384, 512]
    parser.add_argument("--curve-budgets", type=int, nargs="*", default=curve_budgets, help="budgets of one image")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(Case(**json.loads(options.case)))))
        return
    facts = {
        "date": date.today().isoformat(),
        "command": f"python -m tests.benchmarks.selection{' --published PATH' if options.published else ''}",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }
    results = {
        "against": list(against(options.published, options.kinds, options.images, options.budgets)),
        "in tokens": list(curve([(size, round(0.11 * size)) for size in options.sizes])),
        "in groups": list(curve([(576, budget_with_cls) for budget_with_cls in options.curve_budgets])),
    }
    if options.out:
        options.out.write_text(json.dumps(facts | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
