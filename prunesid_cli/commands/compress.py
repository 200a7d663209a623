"""prunesid compress: images and clips in, a cache out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunesid_cli import __version__
from prunesid_cli.commands import options as o
from prunesid_cli.commands.given import is_typed, outweighs_fixed, read_sampling, revision_meant, stdin
from prunesid_cli.commands.report import Report
from prunesid_cli.commands.session import Hardware, Session, read_budget
from prunesid_cli.errors import ExitCode, MediaError, UsageError
from prunesid_cli.output import advance_one, plural, printer, stages
from prunesid_cli.tokencache import calibrated
from prunesid_cli.tokencache.writer import SHARD_ITEMS
from prunesid_cli.video.sampling import FRAMES

if TYPE_CHECKING:
    from prunesid_cli.listing import Listing
    from prunesid_cli.pruner import Pruner


def compress(
    context: typer.Context,
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
    frames: o.Frames = FRAMES,
    fps: o.Fps = None,
    window: o.Window = 1,
    video_backend: o.VideoBackend = o.Backend.auto,
    draft: o.Draft = False,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    attention: o.AttentionOption = o.Attention.auto,
    batch_size: o.BatchSize = 0,
    shard_items: Annotated[
        int, typer.Option(min=1, rich_help_panel=o.RUNNING, help="At most so many a file of the cache; 256 MiB are.")
    ] = SHARD_ITEMS,
    store: o.Store = o.Stored.model,
    as_json: o.Json = False,
    usage: o.Usage = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Encode and prune images and clips into a cache, from which prompts are answered later.

    The same command goes on where an earlier one stopped: what is in the cache is passed over, what failed is retried.

    Example: find . -name '*.jpg' | prunesid compress - --out cache/
    """
    printer.resumable = not calibrate
    if as_json:
        printer.check()
    _check(context)
    stream = stream and outweighs_fixed(context, "stream", "--stream")
    budget = read_budget(context, keep, True if stream else dynamic, method)
    sampling = read_sampling(context)
    session = Session.open(model, revision_meant(context, model, revision), Hardware(device, dtype, attention))
    from prunesid_cli import pipeline
    from prunesid_cli.listing import find_media
    from prunesid_cli.tokencache import CacheWriter, Limits, Run

    checkpoint = session.checkpoint
    listing = find_media(_named(paths, null), lambda what, path: printer.detail(f"{path}: {what}, passed over"))
    if calibrate:
        measure_average(
            session,
            session.pruner(budget, method, sampling=sampling, draft=draft),
            listing,
            out,
            session.batch_size(batch_size),
            as_json,
        )
        return
    sample = calibrated(out, checkpoint.name, checkpoint.revision)
    run = Run(
        checkpoint.name,
        checkpoint.revision,
        checkpoint.model_type,
        method,
        str(budget),
        budget.dynamic,
        budget.even,
        session.dtype_name,
        store.value,
    )
    writer = CacheWriter(out, run, __version__, Limits(shard_items), str(sampling))
    if writer.missing.numbers:
        printer.warning(f"{writer.missing.error.problem}: done again, where they are among these images")
    pruner = session.pruner(budget, method, sample, sampling, draft)
    if draft and pruner.enough is None:
        printer.note("--draft changes nothing: of a larger image this model reads more")
    report = Report(as_json, budget)
    try:
        with printer.progress("compressing", None, prints=as_json) as bar:
            for outcome in pipeline.compress(pruner, listing, writer, session.batch_size(batch_size), stream):
                report.take(outcome)
                advance_one(bar)
        writer.complete()
    finally:
        writer.close()
    report.say(writer, listing)
    if usage:
        printer.usage(stages(pruner.clock.seconds))
    if report.counts["failed"]:
        raise typer.Exit(ExitCode.PARTIAL)


def _check(context: typer.Context) -> None:
    """Refuse options that do nothing beside each other."""
    given = context.params
    if given["stream"] and given["calibrate"] and is_typed(context, "stream"):
        raise UsageError("--stream and --calibrate contradict each other", "--calibrate only measures: leave out one")
    if given["null"] and "-" not in given["paths"]:
        raise UsageError("-0 is about a list on stdin, which is not read", "name - as the path, or leave out -0")


def measure_average(
    session: Session, pruner: Pruner, listing: Listing, out: Path, batch_size: int, as_json: bool
) -> None:
    """Write the information of all images that can be read, in short, into the cache.

    Raises:
        MediaError: none can.
        CacheError: it cannot be written.
    """
    from prunesid_cli import pipeline
    from prunesid_cli.tokencache import Calibration, write_calibration

    values, failed = list[float](), 0
    with printer.progress("measuring", None, prints=False) as bar:
        for one in pipeline.measure(pruner, listing, lambda source, digest: None, batch_size):
            if one.error:
                failed += 1
                printer.error(one.error)
            else:
                values.append(one.phi)
                printer.detail(f"{one.source}: information {one.phi:.4f}")
            advance_one(bar)
    if not values:
        raise MediaError("there is no image to measure", hint="name files, folders or globs of pictures")
    calibration = Calibration.of(session.checkpoint.name, session.checkpoint.revision, values)
    write_calibration(out, calibration)
    if as_json:
        printer.record({"images": len(values), "phi": calibration.phi, "failed": failed})
    printer.note(f"information of {plural(len(values), 'image')}: {calibration.phi:.4f} on average (phi, 1 - rho)")
    printer.note(f"compare single images with it: prunesid ask IMAGE PROMPT --calibration {out}")
    if failed:
        raise typer.Exit(ExitCode.PARTIAL)


def _named(paths: Iterable[str], null: bool) -> Iterable[str]:
    """The paths, and the list on stdin in the place of -."""
    for path in paths:
        if path == "-":
            from prunesid_cli.listing import read_list

            yield from read_list(stdin().buffer, null)
        else:
            yield path
