"""What the host does for each input beside the vision tower: `python -m tests.benchmarks.host`.

The towers are tiny, so `compress` is as fast as the host. For each kind of input, in one run: milliseconds of one core
for decoding and resizing alone (the floor), in the worker processes, and in the main process without what a GPU would
do; inputs per second with 1 and 2 workers; and what follows for machines with more cores: all but one feed the main
process, which
is the limit if it takes longer than they do. Prints a table and, with --out, writes dated JSON. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig

from prunesid_cli.bench.environment import describe_machine, package_versions
from prunesid_cli.demo.build import build_processor
from prunesid_cli.inputs.listing import Listing
from prunesid_cli.pipeline.batches import BatchRunner
from prunesid_cli.pipeline.compress import compress, open_writer, write_results
from prunesid_cli.pipeline.load import DecodeRequest, InputLoader, LoadedInput, decode_input, input_decoder
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import Settings, TokenStore
from prunesid_cli.pipeline.token_budgets import allocate_on_arrival
from prunesid_cli.pipeline.workers import WorkerSetup, worker_pool
from prunesid_cli.runtime.background_writer import BackgroundWriter
from prunesid_cli.runtime.batch_size import BatchSizeTuner, batched
from prunesid_cli.runtime.worker_pool import WorkerPool
from prunesid_cli.tokencache import Entry
from tests.films import film
from tests.models.tiny import tiny_model
from tests.models.tiny.llava import SIDE, SMALL, llava, words

BATCH = 32
FRAMES, PATCH = 8, 28
CORES = (8, 16, 32)
WARM_UP = 32
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def write_llava(folder: Path) -> None:
    """A tiny LLaVA with large patches, 144 of an image, as attention takes most of the time of a tiny tower."""
    processor = build_processor(words())
    processor.patch_size = PATCH
    vision = CLIPVisionConfig(**SMALL, num_hidden_layers=2, image_size=SIDE, patch_size=PATCH, projection_dim=32)
    llava(folder, vision=vision, processor=processor)


@dataclass(frozen=True)
class Case:
    """A kind of input.

    Attributes:
        write: Writes a tiny model, with the image processor of a real one.
        size: Width and height of the files.
        resized: Width and height to which the processor resizes them.
        count: Number of inputs.
    """

    write: Callable[[Path], object]
    size: tuple[int, int]
    resized: tuple[int, int]
    count: int
    is_clip: bool = False


CASES = {
    "JPEG 640x480, CLIP 336": Case(write_llava, (640, 480), (448, 336), 640),
    "JPEG 12 megapixels, CLIP 336": Case(write_llava, (4000, 3000), (448, 336), 48),
    "JPEG 1280x960, Qwen2.5-VL": Case(tiny_model("qwen2_5_vl").write, (1280, 960), (1288, 952), 48),
    "clip 640x480, 8 frames, CLIP 224": Case(tiny_model("video_llava").write, (640, 480), (298, 224), 48, is_clip=True),
}


def write_input(case: Case, path: Path, seed: int) -> None:
    """A picture with as much detail as a photograph, or a short clip."""
    if case.is_clip:
        film(path, 25, size=case.size)
        return
    rng, (width, height) = np.random.default_rng(seed), case.size
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(case.size, Image.Resampling.BICUBIC), np.int16)
    pixels = smooth + rng.integers(-12, 12, smooth.shape, dtype=np.int16)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def decode_and_resize(case: Case, path: Path) -> None:
    """What no host can do without."""
    if case.is_clip:
        from prunesid_cli.inputs.video.decode import decode_clip

        frames: Sequence[Image.Image] = decode_clip(str(path), Settings(frames=FRAMES).sampling()).frames
    else:
        with Image.open(path) as image:
            image.load()
            frames = [image]
    for frame in frames:
        frame.resize(case.resized, Image.Resampling.BICUBIC)


def core_ms(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    """Milliseconds of one core of this process for each item: the best of three rounds."""
    rounds = []
    for _ in range(3):
        start = time.process_time()
        for item in items:
            work(item)
        rounds.append(1000 * (time.process_time() - start) / len(items))
    return min(rounds)


def device_ms(pruner: Pruner, paths: Sequence[Path]) -> float:
    """What a GPU would do: scale the pixels, and run the tower. Joining the pixels of a batch is the host's work."""
    loaded = [decode_input(pruner, DecodeRequest(number, str(path), None)) for number, path in enumerate(paths)]
    batches = list(batched([item.pixels for item in loaded if isinstance(item, LoadedInput)], BATCH))
    numbers = [[next(iter(item.tensors.values())) for item in batch] for batch in batches]
    joined = torch.empty(sum(map(len, numbers[0])), *numbers[0][0].shape[1:], dtype=numbers[0][0].dtype)
    joining = core_ms(lambda batch: torch.cat(batch, out=joined.resize_(0)), numbers)
    return (core_ms(pruner.vision.encode, batches) - joining) * len(batches) / len(paths)


def session_seconds(leader: int) -> float:
    """Processor time of all processes of a session."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == leader:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / CLOCK_TICKS


def run_compress(session: Session, pruner: Pruner, pool: WorkerPool, paths: Sequence[Path], workers: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        writer = open_writer(session, pruner, Path(folder), TokenStore.model, "benchmark")
        with closing(writer), BackgroundWriter() as background:
            loader = InputLoader(input_decoder(pruner, pool), writer)
            runner = BatchRunner(pruner, loader, BatchSizeTuner.fixed(BATCH), workers)
            write = lambda results: background.submit(partial(write_results, writer, results))  # noqa: E731
            results = compress(runner, Listing(map(str, paths)), allocate_on_arrival(pruner, ()), write)
            assert sum(isinstance(result, Entry) for result in results) == len(paths)


def measure(case: Case, folder: Path, scale: float) -> dict[str, Any]:
    """All figures of one kind of input."""
    suffix, count = ".mp4" if case.is_clip else ".jpg", max(WARM_UP, round(case.count * scale))
    paths = [folder / f"{number:04d}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        write_input(case, path, number)
    case.write(folder / "model")
    settings = Settings(model=str(folder / "model"), method="grid", keep="11%", frames=FRAMES, device="cpu")
    session = Session.open(settings)
    pruner, some = session.pruner(), paths[:WARM_UP]
    found: dict[str, Any] = {"inputs": count, "floor_ms": core_ms(partial(decode_and_resize, case), some)}
    found["device_ms"] = device_ms(pruner, some)
    for workers in (1, 2):
        with worker_pool(WorkerSetup(session.checkpoint, settings)) as pool:
            assert pool
            run_compress(session, pruner, pool, some, workers)
            start, start_cpu, start_workers = time.perf_counter(), time.process_time(), session_seconds(pool.pid)
            run_compress(session, pruner, pool, paths, workers)
            worker_seconds = session_seconds(pool.pid) - start_workers
            main_seconds, seconds = time.process_time() - start_cpu, time.perf_counter() - start
        found[f"workers_{workers}"] = {
            "worker_ms": 1000 * worker_seconds / count,
            "main_ms": 1000 * main_seconds / count - found["device_ms"],
            "per_second": count / seconds,
        }
    one, two = found["workers_1"], found["workers_2"]
    found["worker_over_floor"] = one["worker_ms"] / found["floor_ms"]
    found["two_over_one"] = two["per_second"] / one["per_second"]
    found["ceilings"] = {
        cores: min((cores - 1) * 1000 / one["worker_ms"], 1000 / max(one["main_ms"], 0.001)) for cores in CORES
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What the host does for each input beside the vision tower.")
    parser.add_argument("--case", action="append", help="a part of a kind's name; all kinds by default")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of inputs")
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": describe_machine(torch.device("cpu")),
        "versions": package_versions(),
        "batch": BATCH,
        "kinds": {},
    }
    for name, case in CASES.items():
        if case.is_clip and not find_spec("av") or options.case and not any(part in name for part in options.case):
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = report["kinds"][name] = measure(case, Path(folder), options.scale)
        one, two = found["workers_1"], found["workers_2"]
        print(
            f"{name}: floor {found['floor_ms']:.2f} ms, worker {one['worker_ms']:.2f} ms "
            f"({found['worker_over_floor']:.2f} x), main {one['main_ms']:.2f} ms (device {found['device_ms']:.2f} ms)\n"
            f"  {one['per_second']:.0f}/s with 1 worker, {two['per_second']:.0f}/s with 2 "
            f"({found['two_over_one']:.2f} x); ceilings: "
            + ", ".join(f"{cores} cores {rate:.0f}/s" for cores, rate in found["ceilings"].items())
        )
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
