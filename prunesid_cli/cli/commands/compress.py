"""prunesid compress: images and clips in, a cache out."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunesid_cli import __version__
from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import is_typed, outweighs_fixed, read_sampling, revision_meant
from prunesid_cli.cli.choices import Attention, Backend, Dtype, Stored
from prunesid_cli.cli.compress_report import Report
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ExitCode, UsageError
from prunesid_cli.inputs.sharding import Partition, parse_partition
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_FRAMES
from prunesid_cli.pipeline.session import Hardware, LazyVision, Session, read_budget
from prunesid_cli.runtime.shutdown import graceful_shutdown
from prunesid_cli.selection.budget import Spread
from prunesid_cli.text import format_stages
from prunesid_cli.tokencache import calibration_sample
from prunesid_cli.tokencache.format import MAX_SHARD_ITEMS, require_cache
from prunesid_cli.tokencache.shard_marker import check_partition, record_partition

if TYPE_CHECKING:
    from prunesid_cli.pipeline.pruner import Pruner
    from prunesid_cli.tokencache import CacheWriter


def compress(
    context: typer.Context,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="CACHE", help="The cache's folder; made or continued.")],
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="Files, folders, globs; - reads a list of them from stdin."),
    ] = None,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="The list on stdin is separated by NUL, not by line.")
    ] = False,
    model: o.Model = None,
    revision: o.Revision = None,
    keep: o.Keep = "11%",
    dynamic: o.Dynamic = None,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            rich_help_panel=o.PRUNING,
            help="--dynamic in one pass, for images that keep coming: the average converges to what is asked.",
        ),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            rich_help_panel=o.PRUNING,
            help="Only measure an average image, for: ask --calibration CACHE. Some hundreds are plenty.",
        ),
    ] = False,
    method: o.Method = "prunesid",
    frames: o.Frames = DEFAULT_FRAMES,
    fps: o.Fps = None,
    window: o.Window = 1,
    video_backend: o.VideoBackend = Backend.auto,
    draft: o.Draft = False,
    device: o.Device = "auto",
    dtype: o.DtypeOption = Dtype.auto,
    attention: o.AttentionOption = Attention.auto,
    batch_size: o.TowerBatch = 0,
    shard: o.Partition = None,
    retry_failed: o.RetryFailed = False,
    checksum: o.Checksum = False,
    shard_items: o.ShardItems = MAX_SHARD_ITEMS,
    store: o.Store = Stored.model,
    as_json: o.Json = False,
    usage: o.Usage = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Encode and prune images and clips into a cache, from which prompts are answered later.

    The same command goes on where an earlier one stopped: what is in the cache is passed over, what failed is retried.
    With --json a line tells of each input when it goes to the disk; a second later it is safe there.

    Example: find . -name '*.jpg' | prunesid compress - --out cache/
    """
    printer.resumable = not calibrate
    if as_json:
        printer.check()
    _check(context)
    stream = stream and outweighs_fixed(context, "stream", "--stream")
    budget = read_budget(context, keep, True if stream else dynamic, method)
    sampling, portion = read_sampling(context), parse_partition(shard, os.environ)
    if portion.origin:
        printer.note(f"shard {portion}, by {portion.origin}")
    if retry_failed:
        require_cache(out)
    if not calibrate:
        check_partition(out, portion)
    session = Session.open(model, revision_meant(context, model, revision), Hardware(device, dtype, attention))
    from prunesid_cli.cli.compress_run import Inputs, Work, measure_average
    from prunesid_cli.pipeline.compress import BatchRunner
    from prunesid_cli.pipeline.load import Cached, InputLoader
    from prunesid_cli.tokencache import MeasurementLog

    checkpoint, vision, pace = session.checkpoint, LazyVision(session.vision), session.pace(batch_size)
    inputs = Inputs(paths or [], null, portion)
    sample = () if calibrate else calibration_sample(out, checkpoint.name, checkpoint.revision)
    pruner = replace(session.pruner(budget, method, sample, sampling, vision), downscale=draft)
    if calibrate:
        with graceful_shutdown() as stop:
            measure_average(BatchRunner(InputLoader(pruner), pace, stop), inputs, out, checkpoint, as_json)
        return
    writer = _writer(session, pruner, store, out, shard_items)
    plans = pruner.spreads_across_items and not (stream or retry_failed or writer.unwritable)
    cached = Cached(writer, checksum, MeasurementLog(writer, draft) if plans else None)
    inputs = Inputs(list(writer.failed), exact=True) if retry_failed else inputs
    if not retry_failed:
        _go_on(writer, portion)
    report = Report(as_json, budget, portion, retry_failed, len(writer.index.table))
    with graceful_shutdown() as stop:
        job = BatchRunner(InputLoader(pruner, cached, vision.load), pace, stop)
        Work(job, inputs, writer, report, stream).run()
        report.say(writer, not stop.requested)
    if draft and vision.is_loaded and pruner.min_decode_side is None:
        printer.note("--draft changed nothing: of a larger image this model reads more")
    if usage:
        printer.usage(f"batches of {pace.size}   {format_stages(pruner.stopwatch.seconds)}".rstrip())
    stop.raise_if_requested()
    if report.counts["failed"]:
        raise typer.Exit(ExitCode.PARTIAL)


def _go_on(writer: CacheWriter, portion: Partition) -> None:
    """What is said, and kept in mind, of a cache into which new inputs may come."""
    if not writer.unwritable:
        record_partition(writer.folder, portion, not writer.index.shards)
    if writer.missing.numbers:
        printer.warning(f"{writer.missing.error.problem}: done again, where they are among these images")


def _check(context: typer.Context) -> None:
    """Refuse options that do nothing beside each other.

    Raises:
        UsageError: there are such, or nothing to do was named.
    """
    given = context.params
    paths = given["paths"] or []
    if given["stream"] and given["calibrate"] and is_typed(context, "stream"):
        raise UsageError("--stream and --calibrate contradict each other", "--calibrate only measures: leave out one")
    if given["null"] and "-" not in paths:
        raise UsageError("-0 is about a list on stdin, which is not read", "name - as the path, or leave out -0")
    if not given["retry_failed"] and not paths:
        raise UsageError(
            "compress needs images or clips", "name files, folders or globs; see: prunesid compress --help"
        )
    if given["retry_failed"]:
        others = {"PATH": bool(paths), "--calibrate": given["calibrate"], "--shard": given["shard"] is not None}
        for name in (name for name, is_given in others.items() if is_given):
            raise UsageError(
                f"--retry-failed and {name} contradict each other", "it takes what the cache lists as failed"
            )


def _writer(session: Session, pruner: Pruner, store: Stored, out: Path, shard_items: int) -> CacheWriter:
    from prunesid_cli.tokencache import CacheWriter, ShardLimits, Run

    found, budget = session.checkpoint, pruner.budget
    run = Run(
        found.name, found.revision, found.model_type, str(pruner.method), str(budget), budget.spread is Spread.ACROSS_ITEMS, budget.spread is Spread.NONE,
        session.dtype_name, store.value,
    )  # fmt: skip
    return CacheWriter(out, run, __version__, ShardLimits(shard_items), str(pruner.sampling))
