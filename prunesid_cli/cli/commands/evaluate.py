"""prunesid evaluate: questions with their answers in, accuracy against budget and method out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import is_typed, listed, read_sampling, revision_meant
from prunesid_cli.cli.choices import Attention, Backend, Dtype
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ExitCode, MediaError, PruneSIDError, UsageError
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_FRAMES
from prunesid_cli.pipeline.session import Hardware, Session, read_budget
from prunesid_cli.runtime.shutdown import graceful_shutdown
from prunesid_cli.text import align_columns, plural

if TYPE_CHECKING:
    from prunesid_cli.evaluate.records import Record
    from prunesid_cli.evaluate.report import Row
    from prunesid_cli.evaluate.results import Results, Setting
    from prunesid_cli.evaluate.runner import Runner

BUDGETS = "all,192,128,64,32,16"
SEARCHED = ("2", "4", "8", "12", "16", "24", "32", "48", "64", "96", "128", "192", "256", "384", "512", "768", "1024")
"""Budgets among which the smallest that reaches a target is looked for."""
WHAT = {"accuracy": "accuracy", "agreement": "answers"}
SURE = 0.9
NOTHING = "look at its answers: --keep all --out answers.jsonl"
TEXT = "small things that only a few tokens show, as text, suffer first: look at their kind"


def evaluate(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA.jsonl",
            help='Lines {"media": "a.jpg", "prompt": ..., "answer": ..., "kind": ...}; paths as from this file.',
        ),
    ],
    keep: Annotated[
        str, typer.Option("-k", "--keep", rich_help_panel=o.PRUNING, help="Budgets to compare, separated by commas.")
    ] = BUDGETS,
    method: Annotated[
        str, typer.Option(rich_help_panel=o.PRUNING, help="Methods to compare, separated by commas.")
    ] = "prunesid",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=o.PRUNING,
            help="Instead of --keep: the smallest budget that keeps so much of the unpruned accuracy, as 99%. By "
            f"bisection of {', '.join(SEARCHED)}.",
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Of records that name none: exact, contains, yesno, vqa, recall or regex.")
    ] = None,
    divergence: Annotated[
        bool,
        typer.Option(
            "--divergence",
            help="Also how far the first token's odds are from the unpruned ones: Kullback-Leibler, in nats.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="ANSWERS.jsonl", help="Every answer; the same command goes on from there."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Accuracy against budget: .png, .jpg, .svg or .pdf.")
    ] = None,
    model: o.Model = None,
    revision: o.Revision = None,
    dynamic: o.Dynamic = None,
    frames: o.Frames = DEFAULT_FRAMES,
    fps: o.Fps = None,
    window: o.Window = 1,
    video_backend: o.VideoBackend = Backend.auto,
    device: o.Device = "auto",
    dtype: o.DtypeOption = Dtype.auto,
    attention: o.AttentionOption = Attention.auto,
    batch_size: o.BatchSize = 0,
    max_new_tokens: o.MaxNewTokens = 128,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Tell what a budget costs on your own questions: accuracy for each budget and method, beside the unpruned model.

    Without answers to compare with, what counts is whether the answer is that of the unpruned model.

    Example: prunesid evaluate questions.jsonl --keep all,128,64,32 --method prunesid,random --plot plot.png
    """
    printer.check()
    printer.resumable = out is not None
    from prunesid_cli.evaluate.plot import check_plot, draw_plot
    from prunesid_cli.evaluate.records import read_records
    from prunesid_cli.evaluate.report import measure_of, rows_of
    from prunesid_cli.evaluate.results import Results, Setting
    from prunesid_cli.evaluate.runner import Runner
    from prunesid_cli.types import Generation

    if target and is_typed(context, "keep"):
        raise UsageError("--target and --keep contradict each other", "--target looks for a budget: leave out one")
    if plot:
        check_plot()
    wanted = _share(target)
    records = read_records(data, metric)
    methods = listed(method, BUDGETS)
    budgets = list(SEARCHED) if target else [one for one in listed(keep, BUDGETS) if one != "all"]
    settings = [Setting("all", methods[0]), *(Setting(one, name) for name in methods for one in budgets)]
    parsed = {one: read_budget(context, one.keep, dynamic, one.method) for one in settings}
    sampling = read_sampling(context)
    session = Session.open(model, revision_meant(context, model, revision), Hardware(device, dtype, attention))
    made = [session.checkpoint.name, session.checkpoint.revision, session.dtype_name, str(sampling), max_new_tokens]
    results = Results(out, json.dumps([*made, dynamic]))
    if changed := results.leave_out(records):
        printer.note(f"asked again, as their media have changed: {plural(changed, 'record')}")
    first = session.pruner(parsed[settings[0]], methods[0], sampling=sampling)
    pruners = {one: replace(first, budget=parsed[one], method=one.method) for one in settings}
    language, generation = session.language(), Generation(max_new_tokens)
    with graceful_shutdown() as stop:
        runner = Runner(pruners, language, generation, session.batch_size(batch_size), divergence, stop)
        if wanted is None:
            _ask(runner, records, results)
        else:
            tried = (one for name in methods for one in _search(runner, name, records, results, wanted))
            settings = [settings[0], *tried]
    stop.raise_if_requested()
    rows = rows_of(settings, records, results, wanted)
    _tell(rows, records, results, wanted, as_json)
    if plot and rows:
        draw_plot(rows, plot, measure_of(records))
        printer.note(f"plotted: {plot}")
    if results.failed:
        raise typer.Exit(ExitCode.PARTIAL)


def _share(target: str | None) -> float | None:
    if target is None:
        return None
    try:
        value = float(target.removesuffix("%")) / (100 if target.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise UsageError(f"--target {target} is no share", hint="of the unpruned accuracy: 99%, or 0.99")
    return value


def _ask(runner: Runner, records: Sequence[Record], results: Results) -> None:
    with printer.progress("asking", len(records), prints=False) as bar:
        for count in runner.run(records, results):
            if bar is not None:
                bar.advance(bar.task_ids[0], count)


def _search(
    runner: Runner, method: str, records: Sequence[Record], results: Results, target: float
) -> Iterator[Setting]:
    """Halve the range of budgets in which the smallest that reaches the target must be; yields what was tried."""
    from prunesid_cli.evaluate.report import rows_of

    base = runner.base
    candidates = [one for one in runner.pruners if one is not base and one.method == method]
    low, high = 0, len(candidates)
    tried: list[Setting] = []
    while low < high:
        middle = (low + high) // 2
        setting = candidates[middle]
        _ask(replace(runner, pruners={one: runner.pruners[one] for one in (base, setting)}), records, results)
        runner.stop.raise_if_requested()
        tried.append(setting)
        rows = rows_of([base, setting], records, results, target)
        if not rows:
            break
        if (share := rows[1].marks.share) is None:
            raise PruneSIDError("the unpruned model answers no record rightly, so there is nothing to keep", NOTHING)
        reaches = share >= target or rows[1].retention >= 1
        low, high = (low, middle) if reaches else (middle + 1, high)
    yield from sorted(tried, key=lambda one: int(one.keep))


def _tell(
    rows: Sequence[Row], records: Sequence[Record], results: Results, target: float | None, as_json: bool
) -> None:
    from prunesid_cli.evaluate.report import as_record, measure_of, suffering, table

    numbers = {one.key: one.number for one in records}
    for key, error in results.failed.items():
        printer.error(type(error)(f"line {numbers[key]}: {error.problem}", error.hint))
    if not rows:
        raise MediaError("no record could be asked", "see the errors above")
    if as_json:
        for row in rows:
            about = {"measure": measure_of(records), "records": len(records) - len(results.failed)}
            printer.record(as_record(row) | about)
    else:
        for line in align_columns(table(rows, measure_of(records))):
            printer.result(line)
    if 0 < (open_ones := sum(not one.answers for one in records)) < len(records):
        what = f"{open_ones:,} of {plural(len(records), 'record')} expect no answer"
        printer.warning(f"{what}: in the same accuracy they count by whether the answer is the unpruned model's")
    if rows[0].marks.share is None:
        printer.warning(f"the unpruned model answers no record rightly, so nothing can be said of pruning: {NOTHING}")
    for row in rows[1:]:
        lost = suffering(row, records, target or 0.95)
        if lost:
            printer.warning(f"{row.setting}: {', '.join(lost)} of the unpruned accuracy; {TEXT}")
    if target is not None:
        _advise(rows, records, target)


def _advise(rows: Sequence[Row], records: Sequence[Record], target: float) -> None:
    """The smallest budget of each method that keeps what was asked for, and how sure that is."""
    from prunesid_cli.evaluate.report import measure_of

    measure = measure_of(records)
    for method in dict.fromkeys(row.setting.method for row in rows[1:]):
        some = [row for row in rows[1:] if row.setting.method == method]
        good = [row for row in some if (row.marks.share or 0) >= target]
        if not good:
            printer.note(f"{method}: no budget below {rows[0].kept:,.0f} tokens keeps {target:.0%}")
            continue
        best = min(good, key=lambda row: row.kept)
        sure = best.marks.sure or 0.0
        note = f"{method}: --keep {best.setting.keep} keeps {best.marks.share:.1%} of the unpruned {WHAT[measure]}"
        printer.note(f"{note} ({sure:.0%} sure that it is {target:.0%} or more, by {plural(len(records), 'record')})")
        if sure < SURE:
            printer.note("more records would tell better; the next larger budget is safer")
