"""prunesid bench: what pruning saves, stage by stage, against the unpruned model on the same machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import is_typed, listed, naming, read_sampling, revision_meant
from prunesid_cli.cli.choices import Attention, Backend, Dtype
from prunesid_cli.cli.compress_report import note_if_all
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ExitCode, PruneSIDError, UsageError
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_FRAMES
from prunesid_cli.pipeline.session import Hardware, read_budget
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.text import align_columns

if TYPE_CHECKING:
    from prunesid_cli.bench.stages import Measured
    from prunesid_cli.selection.budget import Budget

BUDGETS = "all,64,11%"
UNEVEN = 1.5
"""Times the shortest round, from which on it is said that the longest took so long."""


def bench(
    context: typer.Context,
    media: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MEDIA...]", help="Pictures or clips; without any, drawn scenes as large as it reads."),
    ] = None,
    keep: Annotated[
        str,
        typer.Option("-k", "--keep", rich_help_panel=o.PRUNING, help="Budgets, separated by commas; all: none pruned."),
    ] = "all,11%",
    prompt_tokens: Annotated[
        int, typer.Option(min=1, rich_help_panel=o.ANSWERING, help="Of text in a prompt, its template's counted.")
    ] = 64,
    new_tokens: Annotated[
        int, typer.Option(min=2, rich_help_panel=o.ANSWERING, help="Tokens of each answer, whatever is said.")
    ] = 32,
    batch_size: Annotated[
        str, typer.Option(rich_help_panel=o.RUNNING, help="Items at once, several sizes separated by commas: 1,8,32.")
    ] = "1",
    rounds: Annotated[
        int, typer.Option(min=1, rich_help_panel=o.RUNNING, help="Of which medians are taken; one more warms up.")
    ] = 5,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH", rich_help_panel=o.RUNNING, show_default="as the model reads", help="Of drawn scenes."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", rich_help_panel=o.OUTPUT, help="Also write the JSON.")
    ] = None,
    model: o.Model = None,
    revision: o.Revision = None,
    random_weights: Annotated[
        str | None,
        typer.Option(
            metavar="CONFIG",
            rich_help_panel=o.MODEL,
            help="For timing only: a model of this config with random weights, none downloaded. A repo id, a folder "
            "(but for LLaVA and LLaVA-NeXT with the files of the processor), or llava-1.5-7b, llava-1.5-13b, "
            "llava-next-7b, llava-next-13b, which need no network.",
        ),
    ] = None,
    method: o.Method = "prunesid",
    frames: o.Frames = DEFAULT_FRAMES,
    fps: o.Fps = None,
    window: o.Window = 1,
    video_backend: o.VideoBackend = Backend.auto,
    device: o.Device = "auto",
    dtype: o.DtypeOption = Dtype.auto,
    attention: o.AttentionOption = Attention.auto,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Tell what pruning saves: time and memory of each stage beside the unpruned model, and from where on it pays.

    Example: prunesid bench --random-weights llava-next-7b --keep 640,320,160 --batch-size 1,8
    """
    printer.check()
    keeps = listed(keep, BUDGETS)
    sizes = _sizes(context, batch_size)
    budgets = {one: read_budget(context, one, None, method) for one in keeps}
    sampling, sides = read_sampling(context), _sides(size)
    _check_wanted(context, out)
    from prunesid_cli.cli import bench_run as measuring

    asked = measuring.Asked(sizes, prompt_tokens, new_tokens, rounds)
    with TemporaryDirectory() as name:
        hardware, meant = Hardware(device, dtype, attention), revision_meant(context, model, revision)
        session = measuring.open_session(random_weights, model, meant, hardware, Path(name))
        sources = media or measuring.scenes(session, Path(name), asked, sides)
        first = session.pruner(budgets[keeps[0]], method, sampling=sampling)
        pruners = {one: replace(first, budget=budget) for one, budget in budgets.items()}
        one = measuring.prepare(session, pruners, sources, asked)
        measured, error = measuring.measure(one, asked)
    _note(measured, budgets)
    about = measuring.about(session, asked, media or "drawn scenes", one.stock is not None)
    _tell(about, measured, as_json, out)
    if error:
        printer.error(error)
        raise typer.Exit(ExitCode.PARTIAL)


def _sizes(context: typer.Context, text: str) -> list[int]:
    with naming(context, "batch_size"):
        sizes = listed(text, "1,8,32")
        wrong = next((one for one in sizes if not one.isdecimal() or not int(one)), None)
        if wrong:
            raise UsageError(f"--batch-size {wrong} is no number of items", "one or several, separated by commas: 1,8")
    return [int(one) for one in sizes]


def _sides(text: str | None) -> tuple[int, int] | None:
    """ "672x672" -> width and height."""
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UsageError(f"--size {text} is no size", "width and height in pixels: 672x672")
    return int(width), int(height)


def _check_wanted(context: typer.Context, out: Path | None) -> None:
    given = context.params
    if given["random_weights"] and is_typed(context, "model"):
        raise UsageError("--model and --random-weights contradict each other", "leave out one")
    if given["media"] and given["size"]:
        raise UsageError("--size is of drawn scenes, and pictures are given", "leave out one")
    if out and not out.parent.is_dir():
        raise UsageError(f"--out {out}: no such folder: {out.parent}", f"make it with: mkdir -p {out.parent}")


def _note(measured: Sequence[Measured], budgets: Mapping[str, Budget]) -> None:
    """Budgets that are more than there is, once each; and whether figures can be trusted."""
    from prunesid_cli.bench import report

    for setting, total in {one.setting: round(one.mean("tokens")) for one in measured}.items():
        if setting in budgets:
            note_if_all(budgets[setting], total)
    spread = max(one.spread for one in measured)
    if spread > UNEVEN:
        printer.warning(f"the longest round took {spread:.1f} times the shortest: on a busy machine, try more --rounds")
    for one, until, times in report.differing(measured):
        what = f"--keep {one.setting}, which prunes nothing, took {times:.2f} times as long as stock {until}"
        sure = "figures are no surer than that; try more --rounds, on a machine that is not busy"
        printer.warning(f"{what} (batch of {one.batch_size}): {sure}")


def _tell(about: dict[str, Any], measured: Sequence[Measured], as_json: bool, out: Path | None) -> None:
    from prunesid_cli.bench import report

    found = about | {"settings": report.records_of(measured)}
    if out:
        _write(out, json.dumps(found, indent=1) + "\n")
    if as_json:
        printer.record(found)
        return
    texts = [report.about(found), *map(align_columns, report.tables(measured))]
    printer.result("\n\n".join("\n".join(lines) for lines in texts))


def _write(out: Path, text: str) -> None:
    try:
        write_atomically(out, lambda beside: beside.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise PruneSIDError(f"cannot write {out}: {error.strerror}", "choose another place") from error
