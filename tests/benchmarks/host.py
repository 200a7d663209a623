"""What the host does for each input beside the vision tower: `python -m tests.benchmarks.host`.

The tower takes nothing, so `compress` is as fast as the host. For each kind of input, in one run: milliseconds of one
core for decoding and resizing alone (the floor), in the worker processes, and in the main process, busy (with workers
that answer at once) and while it waits for workers; inputs per second with 1 and 2 workers; and what follows for
machines with more cores: all but one feed the main process, which is the limit if it takes longer than they do. The
information of inputs, which a GPU computes on the device, is measured alone, too. All times are the best of three
rounds. Prints a table and, with --out, writes dated JSON. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from prunesid_cli.bench.environment import describe_machine, package_versions
from prunesid_cli.inputs.listing import Listing
from prunesid_cli.pipeline.batches import make_runner
from prunesid_cli.pipeline.compress import compress, open_writer, write_results
from prunesid_cli.pipeline.load import Decode, DecodeRequest, LoadedInput, decode_input, make_decoder
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import Settings, TokenStore
from prunesid_cli.pipeline.token_budgets import allocate_on_arrival
from prunesid_cli.pipeline.workers import WorkerSetup
from prunesid_cli.runtime.background_writer import BackgroundWriter
from prunesid_cli.runtime.batch_size import BatchSizeTuner
from prunesid_cli.runtime.device import upload
from prunesid_cli.runtime.worker_pool import WorkerPool
from prunesid_cli.tokencache import Entry
from prunesid_cli.types import Encoded, Pixels, Segment
from tests.films import film
from tests.models.tiny import write_checkpoint

BATCH = 32
FRAMES = 8
MAX_TOKENS, WIDTH = 8192, 32
"""Tokens that `NoTower` gives at most, and their width."""
CORES = (8, 16, 32)
WARM_UP, ROUNDS = 32, 3
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Case:
    """A kind of input.

    Attributes:
        variant: A tiny model, with the image processor of a real one.
        size: Width and height of the files.
        resized: Width and height to which the processor resizes them.
        count: Number of inputs.
    """

    variant: str
    size: tuple[int, int]
    resized: tuple[int, int]
    count: int
    is_clip: bool = False


CASES = {
    "JPEG 640x480, CLIP 336": Case("llava", (640, 480), (448, 336), 640),
    "JPEG 12 megapixels, CLIP 336": Case("llava", (4000, 3000), (448, 336), 48),
    "JPEG 1280x960, Qwen2.5-VL": Case("qwen2_5_vl", (1280, 960), (1288, 952), 48),
    "clip 640x480, 8 frames, CLIP 224": Case("video_llava", (640, 480), (298, 224), 48, is_clip=True),
}


def write_input(case: Case, path: Path, seed: int) -> None:
    """A picture with as much detail as a photograph, or a short clip."""
    if case.is_clip:
        film(path, 25, size=case.size)
        with path.open("ab") as file:  # inputs with equal contents would be stored once
            file.write(struct.pack(">I4sI", 12, b"free", seed))
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
    """Milliseconds of one core of this process for each item: the best of `ROUNDS`."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        for item in items:
            work(item)
        rounds.append(1000 * (time.process_time() - start) / len(items))
    return min(rounds)


class NoTower:
    """A vision half whose tower takes nothing. It joins the pixels of a batch, as any other, and gives fixed tokens."""

    def __init__(self, vision: Any) -> None:
        self.vision = vision
        self.features, self.saliency = torch.randn(MAX_TOKENS, WIDTH), torch.rand(MAX_TOKENS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vision, name)

    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        upload([next(iter(item.tensors.values())) for item in items], self.vision.placement.device)
        lengths = [item.layout.total for item in items]
        return [
            Encoded((Segment(self.features[:length], self.saliency[:length]),), item.layout)
            for item, length in zip(items, lengths, strict=True)
        ]


def make_floor_timer(case: dict[str, Any]) -> Callable[[Sequence[Path]], float]:
    """Times the floor in a worker process, whose memory is managed as that of the workers to which it is compared."""
    return lambda paths: core_ms(partial(decode_and_resize, Case(**case)), paths)


def make_instant_decoder(setup: WorkerSetup) -> Decode:
    """Decodes one input, and gives it for each: with such workers, the main process never waits."""
    decode, results = make_decoder(setup), list[Any]()

    def work(request: DecodeRequest) -> Any:
        if not results:
            results.append(decode(request))
        digest = f"{request.number:064x}"  # inputs with equal contents would be stored once
        provenance = replace(results[0].provenance, source=request.source, digest=digest)
        return replace(results[0], number=request.number, provenance=provenance)

    return work


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


def run_compress(
    session: Session, pruner: Pruner, pool: WorkerPool | None, paths: Sequence[Path], workers: int, batch: int = BATCH
) -> int:
    """Compress files, or the files in folders, into a cache that is removed again. Returns how many."""
    with tempfile.TemporaryDirectory() as folder:
        writer = open_writer(session, pruner, Path(folder), TokenStore.model, "benchmark")
        with closing(writer), BackgroundWriter() as background:
            runner = make_runner(session, pruner, pool, writer)
            runner = replace(runner, batch_size=BatchSizeTuner.fixed(batch), num_loading=workers)
            write = lambda results: background.submit(partial(write_results, writer, results))  # noqa: E731
            results = compress(runner, Listing(map(str, paths)), allocate_on_arrival(pruner, ()), write)
            return sum(isinstance(result, Entry) for result in results)


def measure(case: Case, folder: Path, scale: float) -> dict[str, Any]:
    """All figures of one kind of input."""
    suffix, count = ".mp4" if case.is_clip else ".jpg", max(WARM_UP, round(case.count * scale))
    inputs = folder / "inputs"
    inputs.mkdir()
    paths = [inputs / f"{number:04d}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        write_input(case, path, number)
    settings = Settings(
        model=str(write_checkpoint(case.variant, folder / "model")),
        method="grid",
        keep="11%",
        frames=FRAMES,
        device="cpu",
    )
    session = Session.open(settings)
    pruner, some = session.pruner(), paths[:WARM_UP]
    pruner = replace(pruner, vision=NoTower(pruner.vision))
    with closing(WorkerPool("tests.benchmarks.host:make_floor_timer", asdict(case))) as pool:
        found: dict[str, Any] = {"inputs": count, "floor_ms": pool.call(some)}
    decoded = decode_input(pruner, DecodeRequest(0, str(paths[0]), None))
    assert isinstance(decoded, LoadedInput)
    batch = pruner.encode([decoded.pixels] * BATCH)
    found["information_ms"] = core_ms(pruner.information, [batch] * ROUNDS) / BATCH
    setup = WorkerSetup(session.checkpoint, settings)
    with closing(WorkerPool("tests.benchmarks.host:make_instant_decoder", setup)) as pool:
        found["main_ms"] = core_ms(partial(run_compress, session, pruner, pool, workers=2), [[inputs]] * 2) / count
    for workers in (1, 2):
        with closing(WorkerPool("prunesid_cli.pipeline.load:make_decoder", setup)) as pool:
            run_compress(session, pruner, pool, some, workers)
            rounds = []
            for _ in range(ROUNDS):
                start, start_cpu, start_workers = time.perf_counter(), time.process_time(), session_seconds(pool.pid)
                assert run_compress(session, pruner, pool, [inputs], workers) == count
                worker_seconds = session_seconds(pool.pid) - start_workers
                main_seconds, seconds = time.process_time() - start_cpu, time.perf_counter() - start
                rounds.append((worker_seconds, main_seconds, seconds))
        worker_seconds, main_seconds, seconds = map(min, zip(*rounds, strict=True))
        found[f"workers_{workers}"] = {
            "worker_ms": 1000 * worker_seconds / count,
            "main_ms": 1000 * main_seconds / count,
            "per_second": count / seconds,
        }
    one, two = found["workers_1"], found["workers_2"]
    found["worker_over_floor"] = one["worker_ms"] / found["floor_ms"]
    found["two_over_one"] = two["per_second"] / one["per_second"]
    found["ceilings"] = {cores: min((cores - 1) * 1000 / one["worker_ms"], 1000 / found["main_ms"]) for cores in CORES}
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
            f"({found['worker_over_floor']:.2f} x), main {found['main_ms']:.2f} ms "
            f"({found['information_ms']:.2f} ms for the information; {one['main_ms']:.2f} ms while it waits)\n"
            f"  {one['per_second']:.0f}/s with 1 worker, {two['per_second']:.0f}/s with 2 "
            f"({found['two_over_one']:.2f} x); ceilings: "
            + ", ".join(f"{cores} cores {rate:.0f}/s" for cores, rate in found["ceilings"].items())
        )
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
