"""`compress --dry-run`: what a run would do, and how long it would take by the time of a few inputs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.filesize import decimal

from prunesid_cli import __version__
from prunesid_cli.cli.input_paths import InputPaths
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import PruneSIDError
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.inputs.source import to_media_error
from prunesid_cli.pipeline.session import LazyVision, Session, make_run
from prunesid_cli.pipeline.settings import Settings, TokenStore
from prunesid_cli.pipeline.unchanged import read_stamp
from prunesid_cli.runtime.reservoir import Reservoir
from prunesid_cli.text import format_duration, plural
from prunesid_cli.tokencache import open_cache
from prunesid_cli.tokencache.format import is_cache_folder
from prunesid_cli.tokencache.run_mismatch import check_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from prunesid_cli.models.loading.checkpoint import Checkpoint
    from prunesid_cli.pipeline.batches import BatchRunner
    from prunesid_cli.selection.budget import Budget
    from prunesid_cli.tokencache import Cache, CacheWriter

    MakeRun = Callable[[Path], tuple[CacheWriter, BatchRunner]]

SAMPLE_SIZE, WARM_UP = 8, 2
"""Inputs that are timed, and inputs that are encoded before."""


@dataclass
class DryRun:
    """Counts what would be done.

    Attributes:
        cache: What is there already; None if nothing is.
        num_bytes: Size of the inputs that would be read.
        num_cached: Inputs in the cache that have not changed.
        num_failed: Paths that cannot be used.
        new: Some of the inputs that would be read, those that changed included, and their number.
    """

    cache: Cache | None
    num_bytes: int = 0
    num_cached: int = 0
    num_failed: int = 0
    new: Reservoir[str] = field(default_factory=lambda: Reservoir(SAMPLE_SIZE + WARM_UP))

    def add(self, file: ListedFile) -> None:
        """Count a file."""
        try:
            if file.error:
                raise file.error
            size = FILES.stat(file.source).size
        except (PruneSIDError, OSError, ValueError) as error:
            self.num_failed += 1
            printer.error(error if isinstance(error, PruneSIDError) else to_media_error(file.source, error))
            return
        entry = self.cache.index.find(file.source) if self.cache else None
        if entry and entry.stamp == read_stamp(file.source, file.columns):
            self.num_cached += 1
            return
        self.new.add(file.source)
        self.num_bytes += size

    def report(self, measured: Measured | None, as_json: bool) -> None:
        """Print the counts, and what follows from a measurement."""
        record: dict[str, float] = {
            "new": self.new.count, "bytes": self.num_bytes, "cached": self.num_cached, "failed": self.num_failed,
        }  # fmt: skip
        parts = [f"would encode {plural(self.new.count, 'input')} ({decimal(self.num_bytes)})"]
        parts += [f"{self.num_cached:,} already in the cache"] if self.num_cached else []
        parts += [f"{self.num_failed:,} cannot be used"] if self.num_failed else []
        lines = ["   ".join(parts)]
        if measured:
            seconds, size = self.new.count / measured.items_per_second, int(self.new.count * measured.bytes_per_item)
            record |= {"items_per_s": round(measured.items_per_second, 3), "s": round(seconds), "cache_bytes": size}
            rate = f"{measured.items_per_second:.1f}/s by the time of {plural(measured.count, 'input')}"
            lines.append(f"{rate}: about {format_duration(seconds)}   cache about {decimal(size)}")
        if as_json:
            printer.record(record)
        else:
            for line in lines:
                printer.result(line)


@dataclass(frozen=True)
class Measured:
    """How fast some inputs were encoded, and how large their tokens are."""

    count: int
    items_per_second: float
    bytes_per_item: float


def print_dry_run(
    checkpoint: Checkpoint,
    settings: Settings,
    budget: Budget,
    inputs: InputPaths,
    out: Path,
    store: TokenStore,
    downscale: bool,
    retries_failed: bool,
    as_json: bool,
) -> None:
    """Print what `compress` would do. The cache is not changed.

    Raises:
        CacheError: The run would be refused.
    """
    from prunesid_cli.pipeline.batches import make_runner
    from prunesid_cli.pipeline.compress import open_writer
    from prunesid_cli.pipeline.workers import WorkerSetup, worker_pool

    with worker_pool(WorkerSetup(checkpoint, settings, downscale)) as pool:
        session, cache = Session.open(settings, checkpoint), None
        if is_cache_folder(out):
            cache = open_cache(out, with_stamps=True)
            run = make_run(checkpoint, settings, budget, session.dtype_name, store)
            check_settings(out, cache.index.run, cache.index.sampling, run, str(settings.sampling()))
            if retries_failed:
                inputs = inputs.only([record["source"] for record in cache.failures()])
        dry_run = DryRun(cache)
        with printer.progress("listing", None, prints_results=False) as bar:
            for file in inputs.of_this_machine(inputs.listing()):
                dry_run.add(file)
                bar.advance()
        measured = None
        if dry_run.new.count:
            vision = LazyVision(session.load_vision)
            pruner = replace(session.pruner(budget, vision=vision), downscale=downscale)

            def make(folder: Path) -> tuple[CacheWriter, BatchRunner]:
                writer = open_writer(session, pruner, folder, store, __version__)
                return writer, make_runner(session, pruner, pool, writer)

            pruner.load_vision()
            measured = measure(make, dry_run.new.items)
    dry_run.report(measured, as_json)


def measure(make: MakeRun, sources: Sequence[str]) -> Measured | None:
    """Encode some inputs into a cache that is thrown away.

    Args:
        make: Opens a cache in a folder, and makes what encodes into it.
        sources: The inputs. The first ones are not timed, unless there are no others.

    Returns:
        None if none of them can be read.
    """
    from prunesid_cli.pipeline.compress import compress, write_results
    from prunesid_cli.pipeline.results import FailedInput
    from prunesid_cli.pipeline.token_budgets import allocate_on_arrival

    measured = None
    for part in (sources[:WARM_UP], sources[WARM_UP:]):
        if not part:
            continue
        with TemporaryDirectory() as folder:
            writer, runner = make(Path(folder))
            start = time.perf_counter()
            with closing(writer):
                files = [ListedFile(source) for source in part]
                allocator = allocate_on_arrival(runner.pruner, ())
                results = list(compress(runner, files, allocator, partial(write_results, writer)))
            seconds = time.perf_counter() - start
            count = sum(not isinstance(result, FailedInput) for result in results)
            if count:
                measured = Measured(count, count / seconds, writer.index.size / count)
    return measured
