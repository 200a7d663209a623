"""prunesid compress: encodes and prunes images and clips into a cache."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunesid_cli import __version__
from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import is_typed, overrides_fixed, read_budget, read_settings
from prunesid_cli.cli.help import COMMON, PRUNING
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ExitCode, MediaError, UsageError
from prunesid_cli.inputs.containers import DEFAULT_DPI, ContainerOptions
from prunesid_cli.inputs.sharding import parse_partition
from prunesid_cli.pipeline.session import LazyVision, Session, find_checkpoint, make_run
from prunesid_cli.pipeline.settings import DEFAULTS, Settings, TokenStore
from prunesid_cli.runtime.shutdown import graceful_shutdown
from prunesid_cli.text import MODEL_OPTION, command_line, format_stages, plural
from prunesid_cli.tokencache import Calibration, Run, calibration_sample, write_calibration
from prunesid_cli.tokencache.format import MAX_SHARD_ITEMS, is_cache_folder, require_cache
from prunesid_cli.tokencache.partition_marker import check_partition, record_partition
from prunesid_cli.types import DTYPE_NAMES

if TYPE_CHECKING:
    from prunesid_cli.cli.compress_report import CompressReport
    from prunesid_cli.cli.input_paths import InputPaths
    from prunesid_cli.inputs.listing import ListedFile
    from prunesid_cli.pipeline.batches import BatchRunner
    from prunesid_cli.pipeline.compress import Result
    from prunesid_cli.pipeline.measure import MeasuredInput
    from prunesid_cli.pipeline.token_budgets import TokenAllocator
    from prunesid_cli.tokencache import CacheWriter, MeasurementLog


def compress(
    context: typer.Context,
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="CACHE", help="The cache's folder. It is created or continued.")
    ],
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH...",
            help="Files, folders, globs and URIs (s3://...). Tar and Parquet files and PDF documents are read as "
            "folders: {000..099}.tar. The rows of .jsonl and .csv files name images. - reads a list of paths from "
            "stdin.",
        ),
    ] = None,
    include: o.Include = None,
    exclude: o.Exclude = None,
    max_items: o.MaxItems = None,
    image_column: o.ImageColumn = "",
    id_column: o.IdColumn = "",
    dpi: o.Dpi = DEFAULT_DPI,
    dry_run: o.DryRun = False,
    model: o.Model = DEFAULTS.model,
    keep: o.Keep = DEFAULTS.keep,
    null: Annotated[
        bool,
        typer.Option("-0", "--null", rich_help_panel=COMMON, help="Paths on stdin are NUL-separated (find -print0)."),
    ] = False,
    method: o.Method = DEFAULTS.method,
    dynamic: o.Dynamic = DEFAULTS.dynamic,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream", rich_help_panel=PRUNING,
            help="Like --dynamic, in one pass, for images that keep arriving. The average converges to the budget.",
        ),
    ] = False,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate", rich_help_panel=PRUNING,
            help="Only measure the images, and write no tokens. Use the result with: ask --calibration CACHE. A few "
            "hundred images are enough.",
        ),
    ] = False,
    fit: o.Fit = DEFAULTS.fit,
    frames: o.Frames = DEFAULTS.frames,
    fps: o.Fps = DEFAULTS.fps,
    window: o.Window = DEFAULTS.window,
    video_backend: o.VideoBackend = DEFAULTS.video_backend,
    strict: o.Strict = DEFAULTS.strict,
    timeout: o.Timeout = DEFAULTS.timeout,
    draft: o.Draft = False,
    revision: o.Revision = DEFAULTS.revision,
    device: o.Device = DEFAULTS.device,
    dtype: o.Dtype = DEFAULTS.dtype,
    attention: o.Attention = DEFAULTS.attention,
    batch_size: o.TowerBatchSize = DEFAULTS.batch_size,
    workers: o.Workers = DEFAULTS.workers,
    ray: o.Ray = None,
    gpus_per_worker: o.GPUsPerWorker = None,
    cpus_per_worker: o.CPUsPerWorker = None,
    shard: o.Partition = None,
    retry_failed: o.RetryFailed = False,
    checksum: o.Checksum = False,
    shard_items: o.ShardItems = MAX_SHARD_ITEMS,
    store: o.Store = TokenStore.model,
    as_json: o.Json = False,
    usage: o.Usage = False,
    log: o.Log = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:  # fmt: skip
    """Encode and prune images and clips into a cache, from which prompts are answered later.

    Run the same command again to continue an interrupted run: inputs in the cache are skipped, failed inputs are
    retried. A crash loses about one second of work.

    Example: find . -name '*.jpg' | prunesid compress - --out cache/
    """
    printer.resumable = not calibrate
    if as_json:
        printer.check_stdout()
    _check_options(context)
    settings = read_settings(context)
    cluster = None
    if ray:
        from prunesid_cli.integrations.ray.cluster import RayOptions

        cluster = RayOptions.from_options(ray, settings.workers, gpus_per_worker, cpus_per_worker)
        settings = replace(settings, workers=0)  # this process decodes nothing
    is_stream = stream and overrides_fixed(context, "stream", "--stream")
    settings = replace(settings, dynamic=True) if is_stream else settings
    budget = read_budget(context, settings)
    partition = parse_partition(shard, os.environ)
    if partition.origin:
        printer.note(f"partition {partition}, by {partition.origin}")
    if retry_failed:
        require_cache(out)
    if not (calibrate or dry_run):
        check_partition(out, partition)
    from prunesid_cli.cli.compress_report import CompressReport
    from prunesid_cli.cli.input_paths import InputPaths

    checkpoint = find_checkpoint(settings)
    containers = ContainerOptions(image_column, id_column, dpi)
    inputs = InputPaths(paths or [], null, partition, False, include or (), exclude or (), max_items, containers)
    reads_more = (
        dry_run or calibrate or retry_failed or checksum or as_json or verbose or usage or draft or "-" in inputs.paths
    )
    run = make_run(checkpoint, settings, budget, DTYPE_NAMES.get(settings.dtype.value, ""), store)
    if is_cache_folder(out) and not (dry_run or reads_more) and _report_if_done(out, run, settings, inputs):
        return
    if dry_run:
        from prunesid_cli.cli.dry_run import print_dry_run

        print_dry_run(checkpoint, settings, budget, inputs, out, store, draft, retry_failed, as_json)
        return
    from prunesid_cli.pipeline.workers import WorkerSetup, worker_pool

    # Workers are started before torch is imported here.
    with worker_pool(WorkerSetup(checkpoint, settings, draft)) as pool, ExitStack() as resources:
        session, actors = Session.open(settings, checkpoint), None
        if cluster:
            from prunesid_cli.integrations.ray.start import start_actors
            from prunesid_cli.tokencache.lock import acquire_lock

            # The writer locks the folder once the workers are there, for which another run may make this one wait.
            if out.exists():
                acquire_lock(out)[0].release()
            session, actors = resources.enter_context(start_actors(cluster, session, draft))
        from prunesid_cli.pipeline.batches import make_runner
        from prunesid_cli.pipeline.compress import compress as compress_files
        from prunesid_cli.pipeline.compress import open_writer
        from prunesid_cli.pipeline.measure import measure
        from prunesid_cli.tokencache import MeasurementLog

        vision = LazyVision(session.load_vision)
        sample = () if calibrate else calibration_sample(out, checkpoint.name, checkpoint.revision)
        pruner = replace(session.pruner(budget, sample, vision), downscale=draft)
        if calibrate:
            with graceful_shutdown() as stop:
                _calibrate(make_runner(session, pruner, pool, stop=stop), inputs, out, session, as_json)
            return
        writer = open_writer(session, pruner, out, store, __version__, shard_items)
        if retry_failed:
            inputs = inputs.only(list(writer.failed))
        else:
            if not writer.unwritable:
                record_partition(out, partition, is_new=not writer.index.shards)
            if writer.missing.numbers:
                printer.warning(f"{writer.missing.error.problem}; what is among these inputs is encoded again")
        plans_ahead = pruner.spreads_across_items and not is_stream
        keeps_log = plans_ahead and not (retry_failed or writer.unwritable)
        measured = MeasurementLog(writer, draft) if keeps_log else None
        num_listed = len(writer.failed) if retry_failed else None
        report = CompressReport(as_json, budget, partition, num_listed, len(writer.index.table))
        with graceful_shutdown() as stop:
            runner = make_runner(session, pruner, pool, writer, checksum, stop)
            if actors:
                from prunesid_cli.integrations.ray.compress import RayRunner

                actors.stop = stop
                remote = RayRunner(actors, runner.loader)
                stages = Stages(remote.compress, remote.measure)
            else:
                stages = Stages(partial(compress_files, runner), partial(measure, runner))
            _compress(runner, stages, inputs, writer, report, measured, plans_ahead)
            report.print_summary(writer, is_complete=not stop.requested)
        if draft and vision.is_loaded and pruner.min_decode_side is None:
            printer.note("--draft changed nothing: this model reads more of a larger image")
        if usage and actors:
            printer.requested(f"workers {len(actors.ready)}")
        elif usage:
            printer.requested(
                f"batches of {runner.batch_size.size}   {format_stages(pruner.stopwatch.seconds)}".rstrip()
            )
        stop.raise_if_requested()
        if report.counts["failed"]:
            raise typer.Exit(ExitCode.PARTIAL)


@dataclass(frozen=True)
class Stages:
    """The two stages that need the vision tower, here or on other machines. Results come in the order of the files.

    Attributes:
        compress: As `pipeline.compress.compress`, without its runner.
        measure: As `pipeline.measure.measure`, without its runner.
    """

    compress: Callable[..., Generator[Result, None, None]]
    measure: Callable[..., Iterator[MeasuredInput]]


def _report_if_done(out: Path, run: Run, settings: Settings, inputs: InputPaths) -> bool:
    """Whether the cache holds all inputs, and says so if it does. No torch is imported, which would take seconds."""
    from prunesid_cli.cli.compress_report import CompressReport
    from prunesid_cli.pipeline.unchanged import count_unchanged, open_finished_cache

    cache = open_finished_cache(out, run, str(settings.sampling()), inputs.partition)
    if cache is None:
        return False
    report = CompressReport(False, settings.budget(), inputs.partition, num_listed=None, num_items_before=len(cache))
    listing = inputs.listing()
    with printer.progress("checking", None, prints_results=False) as bar:
        count = count_unchanged(cache, inputs.of_this_machine(listing), bar.advance)
    if count is None:
        return False
    report.counts["cached"], report.num_skipped = count, listing.skipped
    report.print_summary(cache, is_complete=True)
    return True


def _check_options(context: typer.Context) -> None:
    """Raises `UsageError` for options that contradict each other, and if there is nothing to do."""
    params = context.params
    paths = params["paths"] or []
    if re.match(r"\w{2,}:/", str(params["out"])):
        problem = f"--out {params['out']}: a cache is a local folder"
        raise UsageError(problem, "write it here, and copy it when it is done")
    if params["stream"] and params["calibrate"] and is_typed(context, "stream"):
        raise UsageError("--stream and --calibrate contradict each other", "--calibrate only measures: leave out one")
    if params["null"] and "-" not in paths:
        raise UsageError("-0 is about a list on stdin, which is not read", "name - as the path, or leave out -0")
    if not paths:
        needs = (
            "--retry-failed needs the paths to retry" if params["retry_failed"] else "compress needs images or clips"
        )
        raise UsageError(needs, "name files, folders or globs; see: prunesid compress --help")
    has_cluster_options = params["gpus_per_worker"] is not None or params["cpus_per_worker"] is not None
    if params["ray"] is None and (has_cluster_options or isinstance(params["workers"], tuple)):
        problem = "--workers MIN-MAX, --gpus-per-worker and --cpus-per-worker are about a cluster"
        raise UsageError(problem, "add --ray auto")
    for name in ("calibrate", "stream"):
        if params["ray"] and params[name] and is_typed(context, name):
            raise UsageError(f"--ray and --{name} do not go together", "leave out one of them")
    for name in ("calibrate", "ray"):
        if params["dry_run"] and params[name]:
            raise UsageError(f"--dry-run and --{name} do not go together", "leave out one of them")
    for name in ("calibrate", "shard"):
        if params["retry_failed"] and params[name]:
            problem = f"--retry-failed and --{name} contradict each other"
            raise UsageError(problem, "--retry-failed takes the inputs that the cache lists as failed")


def _compress(
    runner: BatchRunner,
    stages: Stages,
    inputs: InputPaths,
    writer: CacheWriter,
    report: CompressReport,
    log: MeasurementLog | None,
    plans_ahead: bool,
) -> None:
    """Compresses all inputs into a cache, until they end or the user asks to stop.

    Raises:
        CacheError: The cache cannot be written.
        KeyboardInterrupt: The user asked to stop while images were measured.
    """
    from prunesid_cli.pipeline.compress import write_results
    from prunesid_cli.pipeline.results import FailedInput
    from prunesid_cli.pipeline.token_budgets import allocate_on_arrival
    from prunesid_cli.runtime.background_writer import BackgroundWriter

    with closing(writer), BackgroundWriter(writer.on_idle) as background:

        def write(results: Sequence[Result]) -> None:
            background.submit(partial(write_results, writer, results))

        def clear_failure(path: str) -> None:  # of a folder, or a glob, that an earlier run could not list
            if path in writer.failed:
                background.submit(partial(writer.clear_failure, path))

        listing = inputs.listing(clear_failure)
        files, total = inputs.of_this_machine(listing), None
        if plans_ahead:
            allocator, files, total = _plan(runner, stages, files, inputs, log)
        else:
            allocator = allocate_on_arrival(runner.pruner, writer.index.entries())
        with printer.progress("compressing", total, prints_results=report.as_json) as bar:
            if total is None:
                inputs.count_in_background(bar)
            with closing(stages.compress(files, allocator, write)) as results:
                for result in results:
                    report.add(result)
                    bar.advance(has_failed=isinstance(result, FailedInput))
        report.num_skipped = listing.skipped
        if not runner.stop.requested and not inputs.exact and inputs.max_items is None:
            background.submit(writer.complete)


def _plan(
    runner: BatchRunner, stages: Stages, files: Iterator[ListedFile], inputs: InputPaths, log: MeasurementLog | None
) -> tuple[TokenAllocator, Iterator[ListedFile], int]:
    """Measures all inputs. Returns how many tokens each keeps, the inputs once more, and their number."""
    from prunesid_cli.inputs.replay import ReplayableListing
    from prunesid_cli.pipeline.token_budgets import plan_tokens

    replayable, counts = ReplayableListing(files), Counter[str]()
    with printer.progress("measuring", None, prints_results=False) as bar:
        inputs.count_in_background(bar)

        def measured() -> Iterator[MeasuredInput]:
            for item in stages.measure(replayable.first_pass(), log):
                bar.advance(has_failed=item.error is not None)
                counts["recalled"] += item.is_recalled
                yield item
            runner.stop.raise_if_requested()

        allocator = plan_tokens(runner.pruner, measured())
    if counts["recalled"]:
        printer.note(f"the information of {plural(counts['recalled'], 'image')} is known from an earlier run")
    return allocator, replayable.replay(), replayable.count


def _calibrate(runner: BatchRunner, inputs: InputPaths, out: Path, session: Session, as_json: bool) -> None:
    """Measures all inputs, and writes a summary of their information into the cache.

    Raises:
        MediaError: No input can be read.
        CacheError: The cache cannot be written.
        KeyboardInterrupt: The user asked to stop; nothing is written.
    """
    from prunesid_cli.pipeline.measure import measure

    values, num_failed = list[float](), 0
    with printer.progress("measuring", None, prints_results=False) as bar:
        inputs.count_in_background(bar)
        for item in measure(runner, inputs.of_this_machine(inputs.listing())):
            if item.error:
                num_failed += 1
                printer.error(item.error)
            else:
                values.append(item.phi)
                printer.detail(f"{item.source}: information {item.phi:.4f}")
            bar.advance(has_failed=item.error is not None)
    runner.stop.raise_if_requested()
    if not values:
        raise MediaError("there is no image to measure", hint="name files, folders or globs of images")
    calibration = Calibration.from_values(session.checkpoint.name, session.checkpoint.revision, values)
    write_calibration(out, calibration)
    if as_json:
        printer.record({"images": len(values), "phi": calibration.phi, "failed": num_failed})
    printer.note(f"information of {plural(len(values), 'image')}: {calibration.phi:.4f} on average (phi, 1 - rho)")
    compare = command_line("ask", "IMAGE", "PROMPT", "--calibration", out)
    printer.note(f"compare single images with it: {compare} {MODEL_OPTION}")
    if num_failed:
        raise typer.Exit(ExitCode.PARTIAL)
