"""prunesid compress: images in, a cache out."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli import __version__
from prunesid_cli.commands import options as o
from prunesid_cli.commands.session import Hardware, Session, read_budget
from prunesid_cli.errors import ExitCode
from prunesid_cli.output import advance_one, duration, plural, printer, size, stages
from prunesid_cli.tokencache import PATTERN

if TYPE_CHECKING:
    from prunesid_cli.listing import Listing
    from prunesid_cli.pipeline import Outcome
    from prunesid_cli.tokencache import CacheWriter


def compress(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Files, folders, globs; - reads a list of them from stdin.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="CACHE", help="The cache's folder; made or continued.")],
    null: Annotated[
        bool, typer.Option("-0", "--null", help="The list on stdin is separated by NUL, not by line.")
    ] = False,
    model: o.Model = None,
    revision: o.Revision = None,
    keep: o.Keep = "11%",
    dynamic: o.Dynamic = False,
    method: o.Method = "prunesid",
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    attention: o.AttentionOption = o.Attention.auto,
    batch_size: o.BatchSize = 0,
    shard_items: Annotated[
        int, typer.Option(min=1, rich_help_panel=o.RUNNING, help="Images a file of the cache: what a crash can cost.")
    ] = 512,
    as_json: o.Json = False,
    usage: o.Usage = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Encode and prune images into a cache, from which prompts are answered later.

    The same command goes on where an earlier one stopped: images in the cache are passed over, failed ones retried.

    Example: find . -name '*.jpg' | prunesid compress - --out cache/
    """
    printer.resumable = True
    budget = read_budget(keep, dynamic, method)
    session = Session.open(model, revision, Hardware(device, dtype, attention))
    from prunesid_cli import pipeline
    from prunesid_cli.listing import find_images
    from prunesid_cli.tokencache import CacheWriter, Run

    checkpoint = session.checkpoint
    run = Run(
        checkpoint.name, checkpoint.revision, checkpoint.model_type, method, str(budget), dynamic, session.dtype_name
    )
    writer = CacheWriter(out, run, __version__, shard_items)
    pruner = session.pruner(budget, method)
    listing = find_images(_named(paths, null), lambda what, path: printer.detail(f"{path}: {what}, passed over"))
    report = Report(as_json)
    try:
        with printer.progress("compressing", None, prints=as_json) as bar:
            for outcome in pipeline.compress(pruner, listing, writer, session.batch_size(batch_size)):
                report.take(outcome)
                advance_one(bar)
    finally:
        writer.close()
    report.say(writer, listing)
    if usage:
        printer.usage(stages(pruner.clock.seconds))
    if report.counts["failed"]:
        raise typer.Exit(ExitCode.PARTIAL)


def _named(paths: Iterable[str], null: bool) -> Iterable[str]:
    """The paths, and the list on stdin in the place of -."""
    for path in paths:
        if path == "-":
            from prunesid_cli.listing import read_list

            yield from read_list(sys.stdin.buffer, null)
        else:
            yield path


class Report:
    """What became of the inputs: a line of JSON each on request, and the summary at the end."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.began = time.perf_counter()
        self.counts: Counter[str] = Counter()

    def take(self, outcome: Outcome) -> None:
        if outcome.error:
            self.counts["failed"] += 1
            printer.error(outcome.error)
            self._record(source=outcome.source, error=outcome.error.problem, hint=outcome.error.hint)
        elif outcome.entry is None:
            printer.detail(f"{outcome.source}: already in the cache")
            self.counts["held"] += 1
            self._record(source=outcome.source, held=True)
        else:
            entry = outcome.entry
            self.counts["kept"] += 1
            self.counts["tokens"] += entry.tokens.total
            self.counts["tokens kept"] += len(entry.tokens.indices)
            printer.detail(f"{entry.source}: {len(entry.tokens.indices)} of {entry.tokens.total} visual tokens")
            for note in entry.notes:
                printer.note(f"{entry.source}: {note}")
            self._record(
                source=entry.source, digest=entry.digest, tokens=entry.tokens.total, kept=len(entry.tokens.indices)
            )

    def _record(self, **values: Any) -> None:
        if self.as_json:
            printer.record(values)

    def say(self, writer: CacheWriter, listing: Listing) -> None:
        count, spent = self.counts, time.perf_counter() - self.began
        parts = [f"compressed {plural(count['kept'], 'image')} in {duration(spent)} ({count['kept'] / spent:.1f}/s)"]
        parts += [f"{count['held']:,} already in the cache"] if count["held"] else []
        parts += [f"{plural(number, what)} passed over" for what, number in sorted(listing.passed.items())]
        if count["failed"]:
            parts += [f"{count['failed']:,} failed, listed by: prunesid cache ls {writer.folder} --failed"]
        printer.note("   ".join(parts))
        if not count["kept"] + count["held"] + count["failed"]:
            printer.warning("no images found")
        if count["tokens"]:
            all_tokens, kept = count["tokens"], count["tokens kept"]
            stored = size(sum(path.stat().st_size for path in writer.folder.glob(PATTERN)))
            printer.note(f"visual tokens {all_tokens:,} -> {kept:,} ({kept / all_tokens:.1%})   cache {stored}")
