"""All measurements that need a GPU, in under ten minutes: `python -m tests.benchmarks.gpu [--published PATH]`.

Each part is written as soon as it is done, and skipped if the same command runs again on the same machine:

selection  time, launches, host waits and memory of selection, ours against the published code (PATH: a checkout of it)
eigenproblems  the small eigenproblems of selection, on the host and on the GPU
tower      CLIP-L/336 in half precision, random weights: images a second with and without selection, and its share
agreement  how many images keep other tokens on a GPU than on a CPU (without a GPU, the GPU's code runs on the CPU), and
           for how many the GPU leaves the directions to the CPU
rounding   how many images keep other tokens because another batch size changes the last bits of the tower's output
compress   `compress` beside what can bound it: the bare tower, tower and selection, and the host alone; CLIP-L/336 on
           JPEGs of 640 x 480, and the tower of Qwen2.5-VL-7B on JPEGs of 1,280 x 960, in half precision, random weights
stages     LLaVA-NeXT-7B, random weights: what `prunesid bench` measures, all visual tokens of a picture against fewer

It runs on a CPU as well, where --smoke makes it small enough to be tested.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from prunesid_cli.bench.random_models import SHAPES, Shape, checkpoint_from_config, llava_config
from prunesid_cli.bench.report import to_records
from prunesid_cli.bench.sample_images import image_size_for, write_scenes
from prunesid_cli.bench.stages import Benchmark
from prunesid_cli.bench.stock_model import load_stock_model
from prunesid_cli.bench.timing import LapTimer
from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene
from prunesid_cli.inputs.image import Media, media_from_image
from prunesid_cli.inputs.listing import Listing
from prunesid_cli.models import load_family
from prunesid_cli.models.base import VisionHalf
from prunesid_cli.models.loading.checkpoint import DEMO, Checkpoint, resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.batches import make_runner
from prunesid_cli.pipeline.load import LoadedInput
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import Settings
from prunesid_cli.pipeline.workers import WorkerSetup, worker_pool
from prunesid_cli.runtime.batch_size import BatchSizeTuner, batched
from prunesid_cli.selection import select
from prunesid_cli.selection.budget import Budget
from prunesid_cli.selection.linalg.batched import SPARE
from prunesid_cli.selection.linalg.eigenvectors import batched_directions
from prunesid_cli.selection.linalg.ritz import small_eigh
from prunesid_cli.selection.methods.explanation import explain
from prunesid_cli.selection.prunesid_variants import PRUNESID
from prunesid_cli.selection.psca import centre_tokens, exact_directions
from prunesid_cli.types import Pixels, Placement
from tests.benchmarks.host import CASES, run_compress, write_input
from tests.benchmarks.published import load_published
from tests.models.tiny import write_checkpoint
from tests.selection.inputs import attention, scene_like

Record = dict[str, Any]
UNLIKE_INPUTS = 64
"""Pictures of `compress` that are drawn; the others are copies."""
TEXT, NEW = 64, 32
"""Text tokens of a prompt, and tokens of an answer."""


QWEN_TOWER = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "fullatt_block_indexes": [7, 15, 23, 31],
    "window_size": 112,
}
"""Vision config of Qwen2.5-VL-7B."""
COMPRESS_BATCH = 64


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measurements: numbers of images per batch, seconds per measurement, and sizes of the models."""

    batches: tuple[int, ...] = (1, 16, 64)
    budgets_with_cls: tuple[int, ...] = (64, 128, 192)
    tokens: int = 576
    width: int = 1024
    seconds: float = 1.0
    agreement: int = 200
    rounding: int = 1000
    shape: Shape = SHAPES["llava-next-7b"]
    keep: tuple[str, ...] = ("all", "640", "320", "160")
    rounds: int = 5
    clip_inputs: int = 6000
    qwen_inputs: int = 512
    qwen_tower: dict[str, Any] = field(default_factory=lambda: QWEN_TOWER)


SMOKE = Sizes(
    batches=(1, 3),
    budgets_with_cls=(16,),
    tokens=64,
    width=96,
    seconds=0.0,
    agreement=2,
    rounding=4,
    shape=Shape(64, 64, 1, 2, has_tiles=True, tower_layers=2, vocabulary_size=600),
    keep=("48", "16"),
    rounds=1,
    clip_inputs=6,
    qwen_inputs=4,
    qwen_tower={},
)


@dataclass(frozen=True)
class Bench:
    device: torch.device
    sizes: Sizes
    published: Path | None

    def measured(self, work: Callable[[], object]) -> Record:
        """Median and lower quartile of milliseconds, growth of peak memory, kernel launches and host waits."""
        for _ in range(3):
            work()
        spent, end = list[float](), time.perf_counter() + self.sizes.seconds
        while len(spent) < 3 or time.perf_counter() < end:
            self.wait()
            began = time.perf_counter()
            work()
            self.wait()
            spent.append(1000 * (time.perf_counter() - began))
        quarter = sorted(spent)[len(spent) // 4]
        return {"ms": statistics.median(spent), "ms_lower_quartile": quarter, "runs": len(spent)} | self._traced(work)

    def _traced(self, work: Callable[[], object]) -> Record:
        if self.device.type != "cuda":
            return {}
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
            work()
        calls = Counter({event.key: event.count for event in trace.key_averages()})
        launches = sum(count for name, count in calls.items() if name.startswith(("cudaLaunch", "cuLaunch")))
        waits = sum(count for name, count in calls.items() if "Synchronize" in name)
        peak = (torch.cuda.max_memory_allocated() - before) / 1e6
        return {"peak_mb": peak, "launches": launches, "waits": waits, "copies": calls["cudaMemcpyAsync"]}

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def tokens(self, images: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """features [B, N, C], saliency [B, N]."""
        seeds = range(first, first + images)
        features = torch.cat([scene_like(seed, self.sizes.tokens, self.sizes.width) for seed in seeds])
        saliency = torch.cat([attention(seed, self.sizes.tokens) for seed in seeds])
        return features.to(self.device), saliency.to(self.device)


BATCHED = replace(PRUNESID, directions=partial(exact_directions, batched=True), batched=True)


def selection(bench: Bench) -> Iterator[Record]:
    routes = {"together": BATCHED, "one by one": replace(PRUNESID, directions=exact_directions, batched=False)}
    for images in bench.sizes.batches:
        features, saliency = bench.tokens(images)
        for budget_with_cls in bench.sizes.budgets_with_cls:
            found: Record = {"images": images, "need": budget_with_cls}
            for name, variant in routes.items():
                found[name] = bench.measured(
                    partial(explain, features, saliency, [budget_with_cls] * images, variant, 1)
                )
            if bench.published:
                rival = load_published(bench.published)
                found["published"] = bench.measured(partial(rival, features, saliency, budget_with_cls))
                found["faster"] = found["published"]["ms"] / found["together"]["ms"]
            yield found


def eigenproblems(bench: Bench) -> Iterator[Record]:
    """The small eigenproblems of selection: on the host, as in selection, and on the device of the matrices."""
    for images, budget_with_cls in product(bench.sizes.batches, bench.sizes.budgets_with_cls):
        rows = torch.randn(
            images, min(budget_with_cls // 4 + SPARE, bench.sizes.tokens), bench.sizes.tokens, device=bench.device
        )
        matrices = rows.double() @ rows.double().mT
        ours = bench.measured(partial(small_eigh, matrices))
        yield {
            "images": images,
            "rows": rows.shape[1],
            "host": ours,
            "device": bench.measured(partial(torch.linalg.eigh, matrices)),
        }


def tower(bench: Bench) -> Iterator[Record]:
    with tempfile.TemporaryDirectory() as folder:
        vision = clip_large(bench, Path(folder))
    pruner = Pruner(vision, Budget(count=bench.sizes.budgets_with_cls[0]), "prunesid", ())
    for images in bench.sizes.batches:
        pixels = [there(vision.preprocess(picture(i)), bench.device) for i in range(images)]
        counts = [bench.sizes.budgets_with_cls[0]] * images
        alone = bench.measured(partial(vision.encode, pixels))
        both = bench.measured(partial(encode_and_keep, pruner, pixels, counts))
        chosen = bench.measured(partial(pruner.keep, vision.encode(pixels), counts))
        yield {
            "images": images,
            "need": counts[0],
            "tower": alone,
            "tower and selection": both,
            "selection": chosen,
            "share": (both["ms"] - alone["ms"]) / alone["ms"],
            "images_a_second": [1000 * images / alone["ms"], 1000 * images / both["ms"]],
        }


def there(pixels: Pixels, device: torch.device) -> Pixels:
    return replace(pixels, tensors={name: one.to(device) for name, one in pixels.tensors.items()})


def encode_and_keep(pruner: Pruner, pixels: Sequence[Pixels], counts: Sequence[int]) -> object:
    return pruner.keep(pruner.vision.encode(pixels), counts)


def agreement(bench: Bench) -> Iterator[Record]:
    vision = embedded(bench)

    def seen(images: int, first: int) -> tuple[Tensor, Tensor]:
        return encoded(vision, [vision.preprocess(picture(i)) for i in range(first, first + images)], images)

    for name, tokens in {"synthetic tokens": bench.tokens, "embedded model": seen}.items():
        differ, changes, again = Counter[int](), Counter[int](), Counter[int]()
        for first in range(0, bench.sizes.agreement, 8):
            features, saliency = tokens(min(8, bench.sizes.agreement - first), first)
            for budget_with_cls in bench.sizes.budgets_with_cls:
                budgets_with_cls = [budget_with_cls] * len(features)
                ks = [budget_with_cls // 4] * len(features)
                again[budget_with_cls] += len(batched_directions(features, centre_tokens, ks, need_values=False)[1])
                there = [image.indices for image in explain(features, saliency, budgets_with_cls, BATCHED, 1)]
                here = select(features.cpu(), saliency.cpu(), budgets_with_cls, num_cls=1)
                lost = [changed(a, b) for a, b in zip(there, here, strict=True)]
                differ[budget_with_cls] += sum(count > 0 for count in lost)
                changes[budget_with_cls] += sum(lost)
        for budget_with_cls in bench.sizes.budgets_with_cls:
            found = {"tokens": name, "need": budget_with_cls, "images": bench.sizes.agreement}
            yield found | {
                "done_again": again[budget_with_cls],
                "differ": differ[budget_with_cls],
                "tokens_changed": changes[budget_with_cls],
            }


def rounding(bench: Bench) -> Iterator[Record]:
    towers = {"embedded model": embedded(bench)}
    if bench.device.type == "cuda" or bench.sizes == SMOKE:  # a CPU would take hours
        with tempfile.TemporaryDirectory() as folder:
            towers["CLIP-L/336, random weights"] = clip_large(bench, Path(folder))
    for name, vision in towers.items():
        yield from rounded(name, vision, bench.sizes)


def rounded(name: str, vision: VisionHalf, sizes: Sizes) -> Iterator[Record]:
    """Counts images whose features differ in any bit in larger batches, and images that keep other tokens."""
    first, *rest = sizes.batches
    others, differ, changes = Counter[int](), Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for start in range(0, sizes.rounding, max(rest)):
        pixels = [vision.preprocess(picture(i)) for i in range(start, min(start + max(rest), sizes.rounding))]
        alone = encoded(vision, pixels, first)
        for size in rest:
            batched = encoded(vision, pixels, size)
            rows = [
                i
                for i in range(len(pixels))
                if not all(torch.equal(a[i], b[i]) for a, b in zip(alone, batched, strict=True))
            ]
            others[size] += len(rows)
            for budget_with_cls in sizes.budgets_with_cls if rows else ():
                one, other = (
                    select(*(t[rows] for t in by), [budget_with_cls] * len(rows), num_cls=1) for by in (alone, batched)
                )
                lost = [changed(a, b) for a, b in zip(one, other, strict=True)]
                differ[size, budget_with_cls] += sum(count > 0 for count in lost)
                changes[size, budget_with_cls] += sum(lost)
    for size, budget_with_cls in product(rest, sizes.budgets_with_cls):
        found = {"tower": name, "need": budget_with_cls, "batches": [first, size], "images": sizes.rounding}
        found |= {"encoded_otherwise": others[size], "differ": differ[size, budget_with_cls]}
        yield found | {"tokens_changed": changes[size, budget_with_cls]}


def encoded(vision: VisionHalf, pixels: Sequence[Pixels], size: int) -> tuple[Tensor, Tensor]:
    """Features [B, N, C] and saliency [B, N] of pictures of one segment, encoded in batches of `size`."""
    found = [item.segments[0] for batch in batched(pixels, size) for item in vision.encode(batch)]
    return torch.stack([one.features for one in found]), torch.stack([one.saliency for one in found])


def stages(bench: Bench) -> Iterator[Record]:
    with tempfile.TemporaryDirectory() as name:
        checkpoint = checkpoint_from_config(llava_config(bench.sizes.shape), Path(name))
        family, where = load_family(checkpoint.model_type), placed(bench, checkpoint)
        vision, language = family.load_vision_half(checkpoint, where), family.load_language_half(checkpoint, where)
        pruners = {keep: Pruner(vision, Budget.parse(keep), "prunesid", ()) for keep in bench.sizes.keep}
        sources = write_scenes(Path(name), bench.sizes.rounds, image_size_for(load_config(checkpoint)))
        stock, meter = load_stock_model(checkpoint, language, where), LapTimer(bench.device)
        yield from to_records(Benchmark(stock, pruners, language, sources, TEXT, NEW, meter).run(1, bench.sizes.rounds))


def compress(bench: Bench) -> Iterator[Record]:
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as name:
        folder = Path(name)
        clip = checkpoint_from_config(llava_config(replace(bench.sizes.shape, has_tiles=False)), folder / "clip")
        cases = (
            (clip, "JPEG 640x480, CLIP 336", bench.sizes.clip_inputs),
            (qwen_checkpoint(bench, folder / "qwen"), "JPEG 1280x960, Qwen2.5-VL", bench.sizes.qwen_inputs),
        )
        for checkpoint, kind, count in cases:
            paths = [folder / kind[:9] / f"{number:05d}.jpg" for number in range(count)]
            paths[0].parent.mkdir()
            for number, path in enumerate(paths):
                source = paths[number % UNLIKE_INPUTS]
                if number < UNLIKE_INPUTS:
                    write_input(CASES[kind], path, number)
                else:
                    path.write_bytes(source.read_bytes() + number.to_bytes(4, "big"))  # other contents, as for a cache
            yield {"kind": kind} | compress_record(bench, checkpoint, paths)


def qwen_checkpoint(bench: Bench, folder: Path) -> Checkpoint:
    """The tower of Qwen2.5-VL-7B with random weights, and a tiny language model."""
    config = load_config(resolve(str(write_checkpoint("qwen2_5_vl", folder))))
    for name, value in bench.sizes.qwen_tower.items():
        setattr(config.vision_config, name, value)
    config.save_pretrained(folder)
    return replace(resolve(str(folder)), has_random_weights=True)


def compress_record(bench: Bench, checkpoint: Checkpoint, paths: Sequence[Path]) -> Record:
    """Images per second of compress, and of each of its parts alone."""
    settings = Settings(model=checkpoint.location, device=str(bench.device), keep="64")
    session = Session(checkpoint, placed(bench, checkpoint), settings)
    pruner, some = session.pruner(), paths[: 2 * COMPRESS_BATCH]
    with worker_pool(WorkerSetup(checkpoint, settings)) as pool:
        runner = replace(make_runner(session, pruner, pool), batch_size=BatchSizeTuner.fixed(COMPRESS_BATCH))

        def load_all(paths: Sequence[Path]) -> list[Pixels]:
            batches = runner.load_batches(Listing(map(str, paths)), runner.loader)
            return [item.pixels for batch, _ in batches for item in batch if isinstance(item, LoadedInput)]

        on_device = [there(pixels, bench.device) for pixels in load_all(some)]
        batches = list(batched(on_device, COMPRESS_BATCH))

        def run_tower(work: Callable[[Sequence[Pixels]], object]) -> float:
            milliseconds = bench.measured(lambda: [work(batch) for batch in batches])["ms"]
            return 1000 * len(on_device) / milliseconds

        def keep(batch: Sequence[Pixels]) -> object:
            return encode_and_keep(pruner, batch, [64] * len(batch))

        record: Record = {"inputs": len(paths), "batch": COMPRESS_BATCH, "num_loading": runner.num_loading}
        record["tower_per_second"] = run_tower(pruner.vision.encode)
        record["tower_and_selection_per_second"] = run_tower(keep)
        start = time.perf_counter()
        load_all(paths)
        record["host_per_second"] = len(paths) / (time.perf_counter() - start)
        pruner.stopwatch.seconds.clear()
        start, start_cpu = time.perf_counter(), time.process_time()
        assert run_compress(session, pruner, pool, paths, runner.num_loading, COMPRESS_BATCH) == len(paths)
        seconds = time.perf_counter() - start
    record["compress_per_second"] = len(paths) / seconds
    record["compress_over_tower"] = record["compress_per_second"] / record["tower_per_second"]
    record["main_ms"] = 1000 * (time.process_time() - start_cpu) / len(paths)
    record["stage_seconds"] = dict(pruner.stopwatch.seconds)
    return record


PARTS: dict[str, Callable[[Bench], Iterator[Record]]] = {
    "selection": selection,
    "eigenproblems": eigenproblems,
    "tower": tower,
    "agreement": agreement,
    "rounding": rounding,
    "compress": compress,
    "stages": stages,
}


def clip_large(bench: Bench, folder: Path) -> VisionHalf:
    """The tower of LLaVA-1.5 with random weights."""
    return loaded(bench, checkpoint_from_config(llava_config(replace(bench.sizes.shape, has_tiles=False)), folder))


def embedded(bench: Bench) -> VisionHalf:
    return loaded(bench, resolve(DEMO))


def loaded(bench: Bench, checkpoint: Checkpoint) -> VisionHalf:
    return load_family(checkpoint.model_type).load_vision_half(checkpoint, placed(bench, checkpoint))


def placed(bench: Bench, checkpoint: Checkpoint) -> Placement:
    dtype = "fp32" if bench.device.type == "cpu" else "bf16"
    return choose_placement(str(bench.device), dtype, "auto", load_config(checkpoint))


def picture(index: int) -> Media:
    return media_from_image(Image.fromarray(draw(make_scene(HELD_OUT, index)).pixels))


def changed(one: Tensor, other: Tensor) -> int:
    return len(set(one.tolist()) - set(other.tolist()))


def facts(bench: Bench) -> Record:
    on_gpu = bench.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "command": "python -m tests.benchmarks.gpu" + (" --published PATH" if bench.published else ""),
        "smoke": bench.sizes == SMOKE,
    }


def main() -> None:
    today, automatic = date.today().isoformat(), "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(description="All measurements that need a GPU, in one run.")
    parser.add_argument("--out", type=Path, default=Path(f"tests/benchmarks/results/{today}-gpu.json"))
    parser.add_argument("--published", type=Path, help="a checkout of the published code to compare with")
    parser.add_argument("--device", default=automatic)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    options = parser.parse_args()
    bench = Bench(torch.device(options.device), SMOKE if options.smoke else Sizes(), options.published)
    about = facts(bench)
    report: Record = json.loads(options.out.read_text()) if options.out.exists() else {"date": today}
    if any(report.get(name, value) != value for name, value in about.items()):
        raise SystemExit(f"{options.out} is of another machine or command: name another --out")
    report |= about
    for name in options.parts:
        if name in report:
            print(f"{name}: there already")
            continue
        began, records = time.perf_counter(), list[Record]()
        for record in PARTS[name](bench):
            records.append(record)
            print(name, json.dumps(record), flush=True)
        report[name] = records
        report.setdefault("seconds", {})[name] = round(time.perf_counter() - began, 1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
