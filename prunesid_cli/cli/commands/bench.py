"""prunesid bench: time and memory of each stage with pruning, against the unpruned model on the same machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import is_typed, name_origin, read_budget, read_settings, split_list
from prunesid_cli.cli.notices import note_if_all_kept
from prunesid_cli.cli.terminal import printer, typed_command
from prunesid_cli.errors import ExitCode, UsageError
from prunesid_cli.pipeline.settings import DEFAULTS
from prunesid_cli.runtime.output_file import check_output, replace_output
from prunesid_cli.text import align_columns

if TYPE_CHECKING:
    from prunesid_cli.bench.results import SettingResult
    from prunesid_cli.selection.budget import Budget

EXAMPLE_BUDGETS = "all,64,11%"
REPORT_START = b'{\n "command": '
"""First bytes of the JSON of a report."""
MAX_SPREAD = 1.5
"""Ratio of the longest round to the shortest above which a warning is printed."""


def bench(
    context: typer.Context,
    media: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MEDIA...]", help="Pictures or clips; by default drawn scenes in the size that the model reads."
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            "-k", "--keep", rich_help_panel=o.PRUNING, help="Budgets, separated by commas; all: nothing is pruned."
        ),
    ] = "all,11%",
    prompt_tokens: Annotated[
        int,
        typer.Option(
            min=1, rich_help_panel=o.ANSWERING, help="Text tokens of a prompt, with those of the chat template."
        ),
    ] = 64,
    new_tokens: Annotated[
        int, typer.Option(min=2, rich_help_panel=o.ANSWERING, help="Tokens of each answer; no answer ends earlier.")
    ] = 32,
    batch_size: Annotated[
        str,
        typer.Option(
            rich_help_panel=o.ADVANCED, help="Items per batch: one or several sizes, separated by commas: 1,8,32."
        ),
    ] = "1",
    rounds: Annotated[
        int,
        typer.Option(min=1, rich_help_panel=o.ADVANCED, help="Rounds to take the median of, after one warm-up round."),
    ] = 5,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            rich_help_panel=o.ADVANCED,
            show_default="as the model reads",
            help="Size of drawn scenes in pixels.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", rich_help_panel=o.OUTPUT, help="Also write the JSON.")
    ] = None,
    model: o.Model = DEFAULTS.model,
    revision: o.Revision = DEFAULTS.revision,
    random_weights: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            rich_help_panel=o.MODEL,
            help="For timing only: a model of this configuration with random weights, without a download of weights. A "
            "repo id, a folder (with the files of the processor, except for LLaVA and LLaVA-NeXT), or llava-1.5-7b, "
            "llava-1.5-13b, llava-next-7b, llava-next-13b, which need no network.",
        ),
    ] = None,
    method: o.Method = DEFAULTS.method,
    frames: o.Frames = DEFAULTS.frames,
    fps: o.Fps = DEFAULTS.fps,
    window: o.Window = DEFAULTS.window,
    video_backend: o.VideoBackend = DEFAULTS.video_backend,
    device: o.Device = DEFAULTS.device,
    dtype: o.Dtype = DEFAULTS.dtype,
    attention: o.Attention = DEFAULTS.attention,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Compare time and memory with and without pruning, stage by stage, and say from how many tokens pruning pays.

    Example: prunesid bench --random-weights llava-next-7b --keep 640,320,160 --batch-size 1,8
    """
    printer.check_stdout()
    keeps = split_list(keep, EXAMPLE_BUDGETS)
    batch_sizes = _parse_batch_sizes(context, batch_size)
    settings = read_settings(context, keep=keeps[0], batch_size=0)
    budgets = {name: read_budget(context, replace(settings, keep=name)) for name in keeps}
    scene_size = _parse_size(size)
    _check_options(context, out)
    from prunesid_cli.bench import run

    options = run.BenchmarkOptions(batch_sizes, prompt_tokens, new_tokens, rounds)
    with TemporaryDirectory() as name:
        folder = Path(name)
        session = run.open_session(settings, random_weights, folder)
        sources = media or run.write_sample_scenes(session, folder, options, scene_size)
        first = session.pruner(budgets[keeps[0]])
        pruners = {keep: replace(first, budget=budget) for keep, budget in budgets.items()}
        benchmark = run.prepare(session, pruners, sources, options)
        with printer.progress("measuring", len(batch_sizes), prints_results=False) as bar:
            results, error = run.measure(benchmark, options, on_batch_size=bar.advance)
    _warn(results, budgets)
    description = run.describe_run(session, options, media or "drawn scenes", benchmark, typed_command())
    _print_report(description, results, as_json, out)
    if error:
        printer.error(error)
        raise typer.Exit(ExitCode.PARTIAL)


def _parse_batch_sizes(context: typer.Context, text: str) -> list[int]:
    with name_origin(context, "batch_size"):
        sizes = split_list(text, "1,8,32")
        for size in sizes:
            if not size.isdecimal() or not int(size):
                raise UsageError(
                    f"--batch-size {size} is not a number of items", "one or several, separated by commas: 1,8"
                )
    return [int(size) for size in sizes]


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """ "672x672" -> width and height."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UsageError(f"--size {text} is not a size", "width and height in pixels: 672x672")
    return int(width), int(height)


def _check_options(context: typer.Context, out: Path | None) -> None:
    params = context.params
    if params["random_weights"] and is_typed(context, "model"):
        raise UsageError("--model and --random-weights contradict each other", "leave out one")
    if params["media"] and params["size"]:
        raise UsageError("--size is for drawn scenes, but media are given", "leave out one")
    if out:
        check_output(out, "--out", "a report of bench", lambda header: header.startswith(REPORT_START))


def _warn(results: Sequence[SettingResult], budgets: Mapping[str, Budget]) -> None:
    """Note budgets that keep everything, once each, and warn about measurements that are not reliable."""
    from prunesid_cli.bench import report

    for setting, total in {result.setting: round(result.mean("tokens")) for result in results}.items():
        if setting in budgets:
            note_if_all_kept(budgets[setting], total)
    spread = max(result.spread for result in results)
    if spread > MAX_SPREAD:
        printer.warning(
            f"the longest round took {spread:.1f} times as long as the shortest: if the machine is busy, "
            "try more --rounds"
        )
    for result, total_name, ratio in report.unpruned_deviations(results):
        printer.warning(
            f"--keep {result.setting}, which prunes nothing, took {ratio:.2f} times as long as stock {total_name} "
            f"(batch of {result.batch_size}): other figures can be off as much; try more --rounds on an idle machine"
        )


def _print_report(
    description: dict[str, Any], results: Sequence[SettingResult], as_json: bool, out: Path | None
) -> None:
    from prunesid_cli.bench import report

    record = description | {"settings": report.to_records(results)}
    if out:
        text = json.dumps(record, indent=1) + "\n"
        replace_output(out, lambda file: file.write(text.encode()))
    if as_json:
        printer.record(record)
        return
    sections = [report.describe(record), *map(align_columns, report.make_tables(results))]
    printer.result("\n\n".join("\n".join(lines) for lines in sections))
