"""What a run of compress goes through: its inputs, one by one, into a cache, or into an average."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import typer

from prunesid_cli.cli.arguments import stdin
from prunesid_cli.cli.compress_report import Report
from prunesid_cli.cli.terminal import advance_one, expect, printer
from prunesid_cli.errors import ExitCode, MediaError
from prunesid_cli.inputs.listing import ListedFile, Listing, find_media, read_list
from prunesid_cli.inputs.replay import ReplayableListing
from prunesid_cli.inputs.sharding import Partition
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.pipeline.compress import InputResult, BatchRunner, compress, record
from prunesid_cli.pipeline.measure import measure, plan
from prunesid_cli.pipeline.token_budgets import ItemInformation, TokenAllocator, streaming_allocator
from prunesid_cli.runtime.background_writer import BackgroundWriter
from prunesid_cli.text import plural
from prunesid_cli.tokencache import CacheWriter, Calibration, write_calibration

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class Inputs:
    """Paths, of which - is a list on stdin unless they are `exact`; and the portion of them that is this machine's."""

    paths: Sequence[str]
    null: bool = False
    portion: Partition = field(default_factory=Partition)
    exact: bool = False

    def listing(self, opened: Callable[[str], None] = lambda path: None) -> Listing:
        tell: Callable[[str, str], None] = lambda what, path: printer.detail(f"{path}: {what}, passed over")  # noqa: E731
        return find_media(self._named(), tell, opened)

    def ours(self, listing: Iterable[ListedFile]) -> Iterator[ListedFile]:
        return (one for one in listing if self.portion.takes(one.source))

    def count(self, bar: Progress | None) -> None:
        """Let a bar know how many there are, as soon as it is known; who lists them for it leaves the run alone."""
        if bar is not None and (self.exact or "-" not in self.paths):
            work = lambda: expect(bar, sum(1 for _ in self.ours(find_media(self.paths))))  # noqa: E731
            Thread(target=work, name="count", daemon=True).start()

    def _named(self) -> Iterator[str]:
        for path in self.paths:
            if path == "-" and not self.exact:
                yield from read_list(stdin().buffer, self.null)
            else:
                yield path


@dataclass(frozen=True)
class Work:
    """A run into a cache. `stream`: decide of each image when it comes."""

    job: BatchRunner
    inputs: Inputs
    writer: CacheWriter
    report: Report
    stream: bool

    def run(self) -> None:
        """Until the inputs end, or a stop is asked for; what came until then is in the cache.

        Raises:
            CacheError: it cannot be written.
            KeyboardInterrupt: a stop was asked for while images were measured.
        """
        with closing(self.writer), BackgroundWriter(self.writer.on_idle) as behind:
            listing = self.inputs.listing(partial(self._settle, behind))
            allotment, found, total = self._allotment(self.inputs.ours(listing))
            with printer.progress("compressing", total, prints=self.report.as_json) as bar:
                if total is None:
                    self.inputs.count(bar)

                def write(results: Sequence[InputResult]) -> None:
                    behind.submit(partial(record, self.writer, results))

                with closing(compress(self.job, found, allotment, write)) as outcomes:
                    for outcome in outcomes:
                        self.report.take(outcome)
                        advance_one(bar, outcome.error is not None)
            self.report.skipped = listing.skipped
            if not self.job.stop.requested and not self.inputs.exact:
                behind.submit(self.writer.complete)

    def _allotment(self, found: Iterator[ListedFile]) -> tuple[TokenAllocator, Iterator[ListedFile], int | None]:
        """With the inputs, and how many there are where that is known."""
        pruner = self.job.pruner
        if self.stream or not pruner.spreads_across_items:
            return streaming_allocator(pruner, self.writer.index.entries()), found, None
        remembered, recalled = ReplayableListing(found), Counter[bool]()
        with printer.progress("measuring", None, prints=False) as bar:
            self.inputs.count(bar)

            def told(one: ItemInformation) -> None:
                advance_one(bar, one.error is not None)
                recalled.update([one.is_recalled])

            allotment = plan(self.job, remembered.first_pass(), told)
        if recalled[True]:
            printer.note(f"information of {plural(recalled[True], 'image')} is known from an earlier run")
        return allotment, remembered.replay(), remembered.count

    def _settle(self, behind: BackgroundWriter, path: str) -> None:
        """A folder that could not be read, or a glob that matched nothing, in an earlier run."""
        if path in self.writer.failed:
            behind.submit(partial(self.writer.clear_failure, path))


def measure_average(job: BatchRunner, inputs: Inputs, out: Path, checkpoint: Checkpoint, as_json: bool) -> None:
    """Write the information of all images that can be read, in short, into the cache.

    Raises:
        MediaError: none can.
        CacheError: it cannot be written.
        KeyboardInterrupt: a stop was asked for; then nothing is written.
    """
    values, failed = list[float](), 0
    with printer.progress("measuring", None, prints=False) as bar:
        inputs.count(bar)
        for one in measure(job, inputs.ours(inputs.listing())):
            if one.error:
                failed += 1
                printer.error(one.error)
            else:
                values.append(one.phi)
                printer.detail(f"{one.source}: information {one.phi:.4f}")
            advance_one(bar, one.error is not None)
    job.stop.raise_if_requested()
    if not values:
        raise MediaError("there is no image to measure", hint="name files, folders or globs of pictures")
    calibration = Calibration.of(checkpoint.name, checkpoint.revision, values)
    write_calibration(out, calibration)
    if as_json:
        printer.record({"images": len(values), "phi": calibration.phi, "failed": failed})
    printer.note(f"information of {plural(len(values), 'image')}: {calibration.phi:.4f} on average (phi, 1 - rho)")
    printer.note(f"compare single images with it: prunesid ask IMAGE PROMPT --calibration {out}")
    if failed:
        raise typer.Exit(ExitCode.PARTIAL)
