"""Throughput of compress beside that of the bare tower: `python -m tests.benchmarks.throughput`.

Measures images per second, in one process and over the same pictures, of (tower) the bare tower on preprocessed
tensors, (loop) a plain loop that opens, preprocesses and encodes batch by batch, and (compress) the pipeline, which
does the same, selects tokens and writes a cache. Runs on the embedded model or, with --clip, on a LLaVA with the real
CLIP-L/336 tower and random weights. Repeats alternate, and the best of each counts. Prints a table and, with --out,
writes dated JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene
from prunesid_cli.inputs.image import load_image
from prunesid_cli.inputs.listing import Listing
from prunesid_cli.pipeline.batches import make_runner
from prunesid_cli.pipeline.compress import compress, open_writer, write_results
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import Settings, TokenStore
from prunesid_cli.pipeline.token_budgets import allocate_on_arrival
from prunesid_cli.pipeline.workers import WorkerSetup, worker_pool
from prunesid_cli.runtime.background_writer import BackgroundWriter
from prunesid_cli.runtime.batch_size import BatchSizeTuner, batched
from prunesid_cli.runtime.worker_pool import WorkerPool
from prunesid_cli.tokencache import Entry
from tests.benchmarks import halves


@dataclass(frozen=True)
class Subject:
    session: Session
    pruner: Pruner
    paths: Sequence[Path]
    batch: int
    pool: WorkerPool | None = None


def tower(subject: Subject) -> float:
    pixels = [subject.pruner.preprocess(load_image(path)) for path in subject.paths]
    began = time.perf_counter()
    for some in batched(pixels, subject.batch):
        finish(subject.pruner.vision.encode(some))
    return time.perf_counter() - began


def loop(subject: Subject) -> float:
    began = time.perf_counter()
    for some in batched(subject.paths, subject.batch):
        finish(subject.pruner.vision.encode([subject.pruner.preprocess(load_image(path)) for path in some]))
    return time.perf_counter() - began


def finish(encoded: Any) -> None:
    """Wait for the device."""
    encoded[-1].segments[-1].features[0, 0].item()


def run_pipeline(subject: Subject) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        writer = open_writer(subject.session, subject.pruner, Path(folder), TokenStore.model, "benchmark")
        with closing(writer), BackgroundWriter() as background:
            runner = make_runner(subject.session, subject.pruner, subject.pool, writer)
            runner = replace(runner, batch_size=BatchSizeTuner.fixed(subject.batch))
            write = lambda results: background.submit(partial(write_results, writer, results))  # noqa: E731
            allocator = allocate_on_arrival(subject.pruner, ())
            results = compress(runner, Listing(map(str, subject.paths)), allocator, write)
            num_encoded = sum(isinstance(result, Entry) for result in results)
        seconds = time.perf_counter() - start
    assert num_encoded == len(subject.paths)
    return seconds


WAYS: dict[str, Callable[[Subject], float]] = {"tower": tower, "loop": loop, "compress": run_pipeline}


def measure(subject: Subject, repeats: int) -> dict[str, list[float]]:
    """Seconds of each round."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with torch.inference_mode():
        for number in range(repeats + 1):
            for name, way in WAYS.items():
                spent = way(subject)
                seconds[name] += [spent] if number else []  # the first one warms up
    return seconds


def drawn(folder: Path, count: int, size: int) -> list[Path]:
    """Write scenes as JPEG, `size` pixels wide and high."""
    paths = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(draw(make_scene(HELD_OUT, number)).pixels).resize((size, size)).save(path, quality=90)
    return paths


def subject_of(options: argparse.Namespace, folder: Path) -> Subject:
    paths, model = drawn(folder, options.images, options.size), "demo"
    if options.clip:
        (folder / "clip").mkdir()
        halves.make(folder / "clip")
        model = str(folder / "clip")
    session = Session.open(Settings(model=model, device=options.device, workers=options.workers))
    return Subject(session, session.pruner(), paths, options.batch)


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of compress beside that of the bare tower.")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=640, help="side of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="as of compress")
    parser.add_argument(
        "--clip", action="store_true", help="use a LLaVA with CLIP-L/336 and random weights; on a CPU with --images 8"
    )
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subject = subject_of(options, Path(folder))
        with worker_pool(WorkerSetup(subject.session.checkpoint, subject.session.settings)) as pool:
            seconds = measure(replace(subject, pool=pool), options.repeats)
    rates = {way: len(subject.paths) / min(spent) for way, spent in seconds.items()}
    shares = {f"compress / {other}": rates["compress"] / rates[other] for other in ("tower", "loop")}
    device, dtype = str(subject.session.placement.device), subject.session.dtype_name
    found = {"model": "CLIP-L/336" if options.clip else "embedded", "device": device, "dtype": dtype, **rates, **shares}
    print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items()))
    if options.out:
        kept = {name: value for name, value in vars(options).items() if name != "out"}
        report = {
            "date": date.today().isoformat(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "options": kept,
            "images a second": found,
            "seconds": seconds,
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
