"""prunesid evaluate: accuracy against budget and method, on a user's questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import is_typed, read_budget, read_engine_args, read_settings, split_list
from prunesid_cli.cli.notices import warn_if_cropped
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ExitCode, MediaError, UsageError
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import DEFAULTS, Engine, Fit
from prunesid_cli.report import DEFAULT_RECORDS
from prunesid_cli.runtime.output_file import is_stdout, is_stream
from prunesid_cli.runtime.shutdown import graceful_shutdown
from prunesid_cli.text import align_columns, plural

if TYPE_CHECKING:
    from prunesid_cli.evaluate.records import Record
    from prunesid_cli.evaluate.report import SettingSummary, Target
    from prunesid_cli.evaluate.results import PruningSetting, Results
    from prunesid_cli.evaluate.runner import Answerer, Runner

DEFAULT_BUDGETS = "all,192,128,64,32,16"
EXAMPLE_METHODS = "prunesid,random"
CANDIDATE_BUDGETS = (
    "2", "4", "8", "12", "16", "24", "32", "48", "64", "96", "128", "192", "256", "384", "512", "768", "1024",
)  # fmt: skip
"""Budgets among which --target searches."""


def _complete_metric(incomplete: str) -> list[str]:
    from prunesid_cli.evaluate.metrics import METRICS

    return [name for name in METRICS if name.startswith(incomplete)]


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
    ] = DEFAULT_BUDGETS,
    method: Annotated[
        str, typer.Option(rich_help_panel=o.PRUNING, help="Methods to compare, separated by commas.")
    ] = "prunesid",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=o.PRUNING,
            help="Instead of --keep: find the smallest budget that keeps this share of the unpruned accuracy, such as "
            f"99%, by bisection of {', '.join(CANDIDATE_BUDGETS)}.",
        ),
    ] = None,
    sure: Annotated[
        str,
        typer.Option(
            metavar="SHARE",
            rich_help_panel=o.PRUNING,
            help="How sure --target has to be before it recommends a budget.",
        ),
    ] = "95%",
    metric: Annotated[
        str | None,
        typer.Option(
            autocompletion=_complete_metric,
            help="Metric of records that name none: exact, contains, yesno, vqa, recall or regex.",
        ),
    ] = None,
    divergence: Annotated[
        bool,
        typer.Option(
            "--divergence",
            help="Also measure the Kullback-Leibler divergence of the first token from the unpruned one, in nats.",
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="ANSWERS.jsonl",
            help="File for all answers; the same command continues from it. With /dev/stdout the table goes to stderr.",
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="PICTURE", help="Plot of accuracy against budget: .png, .jpg, .svg or .pdf.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="PAGE.html",
            help="Page for a browser: the table, the chart, and each record with its pictures and answers.",
        ),
    ] = None,
    max_items: o.MaxItems = None,
    model: o.Model = DEFAULTS.model,
    revision: o.Revision = DEFAULTS.revision,
    dynamic: o.Dynamic = DEFAULTS.dynamic,
    fit: o.Fit = DEFAULTS.fit,
    frames: o.Frames = DEFAULTS.frames,
    fps: o.Fps = DEFAULTS.fps,
    window: o.Window = DEFAULTS.window,
    video_backend: o.VideoBackend = DEFAULTS.video_backend,
    strict: o.Strict = DEFAULTS.strict,
    timeout: o.Timeout = DEFAULTS.timeout,
    device: o.Device = DEFAULTS.device,
    dtype: o.Dtype = DEFAULTS.dtype,
    attention: o.Attention = DEFAULTS.attention,
    engine: o.Engine = Engine.builtin,
    engine_args: o.EngineArgs = None,
    batch_size: o.RecordBatchSize = DEFAULTS.batch_size,
    max_new_tokens: o.MaxNewTokens = DEFAULTS.max_new_tokens,
    allow_special_tokens: o.AllowSpecialTokens = DEFAULTS.allow_special_tokens,
    as_json: o.Json = False,
    log: o.Log = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Measure on your own questions what a budget costs: accuracy by budget and method, beside the unpruned model.

    Records without an expected answer count as right if the answer is that of the unpruned model.

    Example: prunesid evaluate questions.jsonl --keep all,128,64,32 --method prunesid,random --plot plot.png
    """
    printer.check_stdout()
    printer.resumable = out is not None and not is_stream(out)
    from prunesid_cli.evaluate.plot import check_plot, draw_plot
    from prunesid_cli.evaluate.records import read_records
    from prunesid_cli.evaluate.report import Target, measure_name, summarize
    from prunesid_cli.evaluate.results import PruningSetting, open_results
    from prunesid_cli.evaluate.runner import Runner
    from prunesid_cli.types import Generation

    if target and is_typed(context, "keep"):
        raise UsageError("--target and --keep contradict each other", "--target searches for a budget: leave out one")
    engine_arguments = read_engine_args(engine, engine_args or ())
    if divergence and engine is Engine.vllm:
        raise UsageError("--divergence needs scores that vLLM does not give", "leave out --divergence or --engine vllm")
    if plot:
        check_plot(plot)
    if report:
        from prunesid_cli.report.page import check_page

        check_page(report, "--report")
    if target is None and is_typed(context, "sure"):
        raise UsageError("--sure is about --target", "add --target 99%")
    wanted = Target(_parse_share("--target", target), _parse_share("--sure", sure)) if target else None
    records, errors = read_records(data, metric)
    records = records[:max_items]
    for error in errors:
        printer.error(error)
    methods = split_list(method, EXAMPLE_METHODS)
    budget_names = (
        CANDIDATE_BUDGETS if target else [name for name in split_list(keep, DEFAULT_BUDGETS) if name != "all"]
    )
    settings = read_settings(context, keep="all", method=methods[0])
    variants = [PruningSetting("all", methods[0])]
    variants += [PruningSetting(name, method) for method in methods for name in budget_names]
    budgets = {
        variant: read_budget(context, replace(settings, keep=variant.keep, method=variant.method))
        for variant in variants
    }
    session, generation = Session.open(settings), Generation(settings.max_new_tokens)
    with open_results(out, _describe_context(session)) as results:
        if num_changed := results.forget_changed(records):
            printer.note(f"asked again, as their media have changed: {plural(num_changed, 'record')}")
        if engine is Engine.vllm:
            from prunesid_cli.integrations.vllm.engine import VllmEngine

            answerer: Answerer = VllmEngine(session, generation, engine_arguments)
        else:
            answerer = language = session.load_language()
        first = session.pruner(budgets[variants[0]])
        pruners = {variant: replace(first, budget=budgets[variant], method=variant.method) for variant in variants}
        with graceful_shutdown() as stop:
            runner = Runner(
                pruners=pruners,
                answerer=answerer,
                generation=generation,
                batch_size=session.batch_size,
                logits=language.logits if divergence else None,
                stop=stop,
                with_groups=report is not None,
            )
            if wanted is None:
                _ask(runner, records, results)
            else:
                variants = variants[:1]
                for method in methods:
                    variants += _search(runner, method, records, results, wanted)
    stop.raise_if_requested()
    summaries = summarize(variants, records, results, wanted)
    print_result = printer.requested if out and is_stdout(out) else printer.result
    _report(summaries, records, results, wanted, as_json, print_result)
    if plot:
        facts = [data.name, plural(len(records) - len(results.failed), "record"), session.checkpoint.name]
        draw_plot(summaries, plot, measure_name(records), " · ".join([*facts, date.today().isoformat()]))
        printer.note(f"plotted: {plot}")
    if report:
        from prunesid_cli.report.evaluation import write_evaluation

        with printer.progress("reading pictures", min(len(records), DEFAULT_RECORDS), prints_results=False) as bar:
            write_evaluation(report, summaries, records, results, DEFAULT_RECORDS, bar.advance, errors)
        printer.note(f"report: {report}")
    if results.failed or errors:
        raise typer.Exit(ExitCode.PARTIAL)


def _parse_share(option: str, text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    is_sure = option == "--sure"
    if not 0 < share <= 1 or (is_sure and share == 1):
        hint = "a probability below 1: 95%, or 0.95" if is_sure else "a share of the unpruned accuracy: 99%, or 0.99"
        raise UsageError(f"{option} {text} is not a share", hint)
    return share


def _describe_context(session: Session) -> str:
    """What answers depend on besides the record, the budget and the method."""
    settings, checkpoint = session.settings, session.checkpoint
    return json.dumps(
        [
            checkpoint.name,
            checkpoint.revision,
            session.dtype_name,
            str(settings.sampling()),
            settings.max_new_tokens,
            settings.dynamic,
            *(["special tokens"] if settings.allow_special_tokens else []),
            *([settings.fit.value] if settings.fit is not Fit.crop else []),
        ]
    )


def _ask(runner: Runner, records: Sequence[Record], results: Results) -> None:
    with printer.progress("asking", len(records), prints_results=False) as bar:
        for count in runner.run(records, results):
            bar.advance(count)


def _search(
    runner: Runner, method: str, records: Sequence[Record], results: Results, target: Target
) -> list[PruningSetting]:
    """Search for the smallest budget of a method that reaches the target; returns the settings that were tried."""
    from prunesid_cli.evaluate.report import can_be_certain, summarize
    from prunesid_cli.evaluate.search import BudgetSearch

    unpruned = runner.unpruned
    candidates = [variant for variant in runner.pruners if variant != unpruned and variant.method == method]
    _ask(runner.limited_to([unpruned]), records, results)
    runner.stop.raise_if_requested()
    search = BudgetSearch(candidates, target, by_estimate=not can_be_certain(unpruned, records, results, target))
    while (candidate := search.next_candidate()) is not None:
        _ask(runner.limited_to([unpruned, candidate]), records, results)
        runner.stop.raise_if_requested()
        summaries = summarize([unpruned, candidate], records, results, target)
        if not summaries:
            break
        search.update(summaries[1])
    return search.tried


def _report(
    summaries: Sequence[SettingSummary],
    records: Sequence[Record],
    results: Results,
    target: Target | None,
    as_json: bool,
    print_result: Callable[[str], object],
) -> None:
    from prunesid_cli.evaluate.advice import advise_budgets, find_warnings
    from prunesid_cli.evaluate.report import make_table, measure_name, to_record

    line_numbers = {record.key: record.line_number for record in records}
    for key, error in results.failed.items():
        located = type(error)(f"line {line_numbers[key]}: {error.problem}", error.hint)
        located.__cause__ = error
        printer.error(located)
    if not summaries:
        raise MediaError("no record could be asked", "see the errors above")
    measure = measure_name(records)
    unpruned = [results.answers[record.key, "all"] for record in records if (record.key, "all") in results.answers]
    seen = [answer.seen for answer in unpruned if answer.seen < 1]
    if as_json:
        run_fields: dict[str, Any] = {"measure": measure, "records": len(records) - len(results.failed)}
        run_fields |= {"cropped": len(seen), "seen": fmean(seen)} if seen else {}
        for summary in summaries:
            print_result(json.dumps(to_record(summary) | run_fields))
    else:
        for line in align_columns(make_table(summaries, measure)):
            print_result(line)
    warn_if_cropped(seen, len(unpruned), "record")
    for warning in find_warnings(summaries, records, target):
        printer.warning(warning)
    if target is not None:
        for note in advise_budgets(summaries, records, target):
            printer.note(note)
