"""vLLM fed with pictures beside vLLM fed with a cache: `python -m tests.benchmarks.vllm`. Needs vLLM.

Measures, each in a process of its own and after a warm-up, images per second of `compress`, and answers per second of
vLLM when it is given (pictures) JPEG files, as its users do, and (cache) kept tokens, by `answer --engine vllm`. All
prompts about a picture are given one after the other, so that vLLM can read their common beginning once in both cases.
Runs on --model, or on random weights of a --shape, which are written to a temporary folder first. Prints a table and,
with --out, writes dated JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from prunesid_cli.bench.environment import describe_machine, git_commit, package_versions
from prunesid_cli.bench.random_models import SHAPES, Shape, llava_config, write_without_weights
from prunesid_cli.inputs.listing import Listing
from prunesid_cli.integrations.vllm.support import installed_vllm
from prunesid_cli.pipeline.batches import make_runner
from prunesid_cli.pipeline.compress import compress, open_writer, write_results
from prunesid_cli.pipeline.prompt_file import ItemFilter, Prompt, Prompts
from prunesid_cli.pipeline.session import Session, find_checkpoint
from prunesid_cli.pipeline.settings import Dtype, Settings, TokenStore
from prunesid_cli.pipeline.token_budgets import allocate_on_arrival
from prunesid_cli.pipeline.workers import WorkerSetup, worker_pool
from prunesid_cli.runtime.background_writer import BackgroundWriter
from prunesid_cli.tokencache import open_cache
from prunesid_cli.types import Generation
from tests.benchmarks.throughput import drawn

SMALL = "small"
BENCHMARK_SHAPES = {SMALL: Shape(1024, 2816, 12, 16), **SHAPES}
"""`small`, for CPUs: CLIP-L/336 and a Llama of 216 M."""
PROMPTS = ("what is shown?", "is there a star?", "what is the color of the square?", "how many shapes are there?")
HUB_NAMES = {
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
"""Beginnings of the names of tensors in transformers -> on the hub."""
WARM_UP = 2
"""Pictures that are given before the clock starts. They are not given again."""

R = TypeVar("R")


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        model: The model, as of --model.
        paths: Pictures; the first `WARM_UP` of them warm up.
        keep: The budget of the cache.
        prompt_counts: Numbers of prompts about each picture.
        new_tokens: Most tokens of an answer.
        repeats: Number of rounds; the median counts.
        device, dtype: As of the options of `compress`.
        cache: Folder of the cache.
    """

    model: str
    paths: Sequence[Path]
    keep: str
    prompt_counts: Sequence[int]
    new_tokens: int
    repeats: int
    device: str
    dtype: Dtype
    cache: Path

    @property
    def settings(self) -> Settings:
        return Settings(model=self.model, keep=self.keep, device=self.device, dtype=self.dtype)


def write_random_model(shape: Shape, dtype: torch.dtype, folder: Path) -> None:
    """Write a checkpoint with random weights, whose tensors are named as those on the hub are, which vLLM knows."""
    write_without_weights(llava_config(shape), folder)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    weights = {}
    for name, tensor in model.state_dict().items():
        for ours, hub in HUB_NAMES.items():
            if name.startswith(ours):
                weights[hub + name.removeprefix(ours)] = tensor
    assert len(weights) == len(model.state_dict())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def measure_compress(task: Task) -> list[float]:
    """Seconds of each round of `compress` over the pictures. The last round leaves the cache."""
    session, seconds = Session.open(task.settings), []
    pruner = session.pruner()
    with worker_pool(WorkerSetup(session.checkpoint, session.settings)) as pool, torch.inference_mode():
        for number in range(task.repeats + 1):
            folder = task.cache if number == task.repeats else task.cache.with_name(f"round-{number}")
            start = time.perf_counter()
            writer = open_writer(session, pruner, folder, TokenStore.model, "benchmark")
            with closing(writer), BackgroundWriter() as background:

                def write(results: Any, writer: Any = writer, background: BackgroundWriter = background) -> None:
                    background.submit(partial(write_results, writer, results))

                runner = make_runner(session, pruner, pool, writer)
                files = Listing(map(str, task.paths))
                num_done = sum(1 for _ in compress(runner, files, allocate_on_arrival(pruner, ()), write))
            assert num_done == len(task.paths)
            seconds += [time.perf_counter() - start] if number else []
    return seconds


def time_answers(
    engine: Any, task: Task, answer: Callable[[Sequence[Path], Sequence[str]], Sequence[int]]
) -> dict[int, dict[str, Any]]:
    """Number of prompts about a picture -> seconds of each round, and the mean number of tokens of an answer."""
    answer(task.paths[:WARM_UP], PROMPTS)
    found = {}
    for count in task.prompt_counts:
        seconds, lengths = list[float](), list[int]()
        for _ in range(task.repeats):
            engine.reset_prefix_cache()
            engine.reset_mm_cache()
            start = time.perf_counter()
            lengths += answer(task.paths[WARM_UP:], PROMPTS[:count])
            seconds.append(time.perf_counter() - start)
        found[count] = {"seconds": seconds, "new_tokens": statistics.mean(lengths)}
    return found


def measure_pictures(task: Task) -> dict[int, dict[str, Any]]:
    """Give vLLM the files."""
    from prunesid_cli.integrations.vllm.engine import ENVIRONMENT

    os.environ |= ENVIRONMENT
    from vllm import LLM, SamplingParams

    location = str(find_checkpoint(task.settings).location)
    processor = AutoProcessor.from_pretrained(location)
    engine = LLM(
        model=location,
        dtype=Session.open(task.settings).dtype_name,
        limit_mm_per_prompt={"image": 1},
        enforce_eager=not torch.cuda.is_available(),
    )
    sampling = SamplingParams(temperature=0, max_tokens=task.new_tokens)

    def answer(paths: Sequence[Path], prompts: Sequence[str]) -> list[int]:
        requests = []
        for path in paths:
            image = Image.open(path).convert("RGB")
            for prompt in prompts:
                content = [{"type": "image"}, {"type": "text", "text": prompt}]
                text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
                requests.append({"prompt": text, "multi_modal_data": {"image": image}})
        outputs = engine.generate(requests, sampling, use_tqdm=False)
        return [len(output.outputs[0].token_ids) for output in outputs]

    return time_answers(engine, task, answer)


def measure_cache(task: Task) -> dict[int, dict[str, Any]]:
    """Give vLLM the kept tokens."""
    from prunesid_cli.integrations.vllm.engine import VllmEngine

    engine = VllmEngine(Session.open(task.settings), Generation(task.new_tokens), {})

    def answer(paths: Sequence[Path], prompts: Sequence[str]) -> list[int]:
        cache, lengths = open_cache(task.cache), list[int]()
        asked = Prompts([Prompt(text) for text in prompts])
        for replies in engine.answer(asked.queries(cache, ItemFilter([str(path) for path in paths]))):
            assert all(reply.answer for reply in replies), replies
            lengths += [reply.answer.new_tokens for reply in replies if reply.answer]
        assert len(lengths) == len(paths) * len(prompts)
        return lengths

    return time_answers(engine.engine, task, answer)


def in_own_process(measure: Callable[[Task], R], task: Task) -> R:
    """What a function measures in a new process, which gives its memory back."""
    gc.collect()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, task).result()


def summarize(task: Task, compress_seconds: Sequence[float], pictures: Any, cache: Any) -> list[dict[str, Any]]:
    """For each number of prompts: answers per second of both, and how many times faster the cache is."""
    num_pictures, rows = len(task.paths) - WARM_UP, []
    compress_time = statistics.median(compress_seconds) * num_pictures / len(task.paths)
    for count in task.prompt_counts:
        by_pictures, by_cache = (statistics.median(found[count]["seconds"]) for found in (pictures, cache))
        rows.append(
            {
                "prompts": count,
                "pictures, answers/s": num_pictures * count / by_pictures,
                "cache, answers/s": num_pictures * count / by_cache,
                "times faster": by_pictures / by_cache,
                "times faster, with compress": by_pictures / (by_cache + compress_time),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="vLLM fed with pictures beside vLLM fed with a cache.")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", help="a checkpoint with weights as they are on the hub")
    source.add_argument("--shape", choices=BENCHMARK_SHAPES, default=SMALL, help="random weights of this shape")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=640, help="side of the pictures in pixels")
    parser.add_argument("--keep", default="11%", help="as of compress")
    parser.add_argument("--prompts", type=int, nargs="+", default=[1, 4], choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", type=Dtype, choices=Dtype, default=Dtype.auto)
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    if (vllm := installed_vllm()) is None:
        parser.error("vLLM is not installed")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("HF_HUB_OFFLINE", "0" if options.model else "1")
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), options.model
        (folder / "pictures").mkdir()
        if not model:
            model = str(folder / "model")
            is_fast = torch.cuda.is_available() or options.dtype is Dtype.bf16
            write_random_model(
                BENCHMARK_SHAPES[options.shape], torch.bfloat16 if is_fast else torch.float32, folder / "model"
            )
        task = Task(
            model=model,
            paths=drawn(folder / "pictures", options.images + WARM_UP, options.size),
            keep=options.keep,
            prompt_counts=options.prompts,
            new_tokens=options.new_tokens,
            repeats=options.repeats,
            device=options.device,
            dtype=options.dtype,
            cache=folder / "cache",
        )
        compress_seconds = in_own_process(measure_compress, task)
        cache = in_own_process(measure_cache, task)
        pictures = in_own_process(measure_pictures, task)
        session = Session.open(replace(task.settings, keep="all"))
    rows = summarize(task, compress_seconds, pictures, cache)
    print(f"compress: {len(task.paths) / statistics.median(compress_seconds):.3g} images/s")
    for row in rows:
        print("   ".join(f"{name}: {value:.3g}" for name, value in row.items()))
    if options.out:
        report = {
            "date": date.today().isoformat(),
            "commit": git_commit(),
            "machine": describe_machine(session.placement.device),
            "versions": package_versions() | {"vllm": vllm.version},
            "dtype": session.dtype_name,
            "options": {name: value for name, value in vars(options).items() if name != "out"},
            "compress, images/s": len(task.paths) / statistics.median(compress_seconds),
            "rows": rows,
            "seconds": {"compress": compress_seconds, "pictures": pictures, "cache": cache},
        }
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
