"""A benchmark run: open the model, write scenes to measure with, choose what to compare with, and measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers.utils import is_flash_attn_2_available

from prunesid_cli.bench import environment, report
from prunesid_cli.bench.random_models import random_checkpoint
from prunesid_cli.bench.results import STOCK, SettingResult
from prunesid_cli.bench.sample_images import image_size_for, write_scenes
from prunesid_cli.bench.stages import Benchmark
from prunesid_cli.bench.stock_model import can_run_stock_model, load_stock_model
from prunesid_cli.bench.timing import LapTimer
from prunesid_cli.errors import OutOfMemory, PruneSIDError
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.requirements import MODEL_TYPES_WITHOUT_FLASH
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import Attention, Settings
from prunesid_cli.selection.budget import Budget

MIN_SCENES = 8


@dataclass(frozen=True)
class BenchmarkOptions:
    """How much is measured.

    Attributes:
        batch_sizes: Items per batch, one run for each size.
        prompt_tokens: Tokens of a prompt other than visual ones.
        new_tokens: Tokens of each answer.
        rounds: Rounds after the warm-up.
    """

    batch_sizes: Sequence[int]
    prompt_tokens: int
    new_tokens: int
    rounds: int


def open_session(settings: Settings, random_weights: str | None, folder: Path) -> Session:
    """Open a session with the fastest attention kernels that are installed, unless the settings choose them.

    Args:
        settings: Model and hardware.
        random_weights: Shape, folder or repository of a model to make with random weights; None: the settings' model.
        folder: Where files are written that a model with random weights lacks.
    """
    checkpoint = random_checkpoint(random_weights, settings.revision, folder) if random_weights else None
    session = Session.open(settings, checkpoint)
    placement = session.placement
    use_flash = (
        settings.attention is Attention.auto
        and placement.dtype.itemsize == 2
        and is_flash_attn_2_available()
        and placement.device.type == "cuda"
        and session.checkpoint.model_type not in MODEL_TYPES_WITHOUT_FLASH
    )
    if use_flash:
        placement = replace(placement, attention=Attention.flash.value)
    return replace(session, placement=placement)


def write_sample_scenes(
    session: Session, folder: Path, options: BenchmarkOptions, size: tuple[int, int] | None
) -> list[str]:
    """Write as many scenes as a batch needs, and return their paths; by default in the size that the model reads."""
    count = max(MIN_SCENES, *options.batch_sizes)
    return write_scenes(folder, count, size or image_size_for(load_config(session.checkpoint)))


def prepare(
    session: Session, pruners: dict[str, Pruner], sources: Sequence[str], options: BenchmarkOptions
) -> Benchmark:
    """Load the language half and, if it can be asked about these sources, the stock model."""
    language = session.load_language()
    benchmark = Benchmark(
        stock=None,
        pruners=pruners,
        language=language,
        sources=sources,
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        timer=LapTimer(session.placement.device),
    )
    media, pixels = benchmark.load(list(dict.fromkeys(sources)))
    if can_run_stock_model(session.checkpoint, language, media, [item.layout for item in pixels]):
        return replace(benchmark, stock=load_stock_model(session.checkpoint, language, session.placement))
    unpruned = replace(next(iter(pruners.values())), budget=Budget.parse("all"))
    pruned = {keep: pruner for keep, pruner in pruners.items() if keep != "all"}
    return replace(benchmark, pruners={STOCK: unpruned, **pruned})


def measure(
    benchmark: Benchmark, options: BenchmarkOptions, on_batch_size: Callable[[], object]
) -> tuple[list[SettingResult], PruneSIDError | None]:
    """Measure one batch size after another, until one does not fit into memory.

    Args:
        benchmark: What to measure.
        options: How much to measure.
        on_batch_size: Called after each batch size.

    Returns:
        The results, and the error of the batch size that did not fit, if one did not.

    Raises:
        OutOfMemory: The first batch size does not fit.
    """
    results: list[SettingResult] = []
    for size in options.batch_sizes:
        try:
            results += benchmark.run(size, options.rounds)
        except OutOfMemory as error:
            if not results:
                raise
            return results, error
        on_batch_size()
    return results, None


def describe_run(
    session: Session, options: BenchmarkOptions, media: Sequence[str] | str, benchmark: Benchmark, command: str
) -> dict[str, Any]:
    """Return everything that a report needs besides the measurements."""
    checkpoint, device = session.checkpoint, session.placement.device
    language: Any = benchmark.language
    return {
        "command": command,
        "commit": environment.git_commit(),
        "versions": environment.package_versions(),
        "machine": environment.describe_machine(device),
        "model": {
            "name": checkpoint.name,
            "revision": checkpoint.revision,
            "model_type": checkpoint.model_type,
            "weights": report.RANDOM_WEIGHTS if checkpoint.has_random_weights else "the checkpoint's",
        },
        "device": str(device),
        "dtype": session.dtype_name,
        "attention": language.model.config.get_text_config()._attn_implementation,
        "stock": report.STOCK_IS_TRANSFORMERS if benchmark.stock else report.STOCK_IS_UNPRUNED,
        "media": media,
        "rounds": options.rounds,
        "memory": LapTimer(device).memory_source,
    }
