"""prunesid ask: answers a prompt about images or clips."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import overrides_fixed, read_budget, read_media, read_prompt, read_settings
from prunesid_cli.cli.notices import note_if_all_kept, warn_if_cropped
from prunesid_cli.cli.terminal import printer, stdout_is_terminal, typed_command
from prunesid_cli.errors import UsageError
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import DEFAULTS
from prunesid_cli.text import MODEL_OPTION, command_line, escape_invisible, format_stages
from prunesid_cli.tokencache import information_sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from prunesid_cli.inputs.image import Media
    from prunesid_cli.pipeline.compare import Outcome
    from prunesid_cli.pipeline.settings import Settings


def ask(
    context: typer.Context,
    media_and_prompt: Annotated[
        list[str],
        typer.Argument(
            metavar="MEDIA... PROMPT", help="Image or video files, then the prompt. One of them may be - for stdin."
        ),
    ],
    model: o.Model = DEFAULTS.model,
    keep: o.Keep = DEFAULTS.keep,
    method: o.Method = DEFAULTS.method,
    dynamic: o.Dynamic = DEFAULTS.dynamic,
    calibration: o.Calibration = None,
    fit: o.Fit = DEFAULTS.fit,
    frames: o.Frames = DEFAULTS.frames,
    fps: o.Fps = DEFAULTS.fps,
    window: o.Window = DEFAULTS.window,
    video_backend: o.VideoBackend = DEFAULTS.video_backend,
    strict: o.Strict = DEFAULTS.strict,
    limit: o.Limit = DEFAULTS.limit,
    revision: o.Revision = DEFAULTS.revision,
    device: o.Device = DEFAULTS.device,
    dtype: o.Dtype = DEFAULTS.dtype,
    attention: o.Attention = DEFAULTS.attention,
    max_new_tokens: o.MaxNewTokens = DEFAULTS.max_new_tokens,
    temperature: o.Temperature = DEFAULTS.temperature,
    seed: o.Seed = DEFAULTS.seed,
    allow_special_tokens: o.AllowSpecialTokens = DEFAULTS.allow_special_tokens,
    as_json: o.Json = False,
    usage: o.Usage = False,
    compare: o.Compare = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Answer a prompt about one or more images or clips.

    Example: prunesid ask samples/scene5.png "what is shown?"
    """
    printer.check_stdout()
    *sources, prompt = media_and_prompt
    if calibration and not overrides_fixed(context, "calibration", "--calibration"):
        calibration = None
    settings = read_settings(context)
    settings = replace(settings, dynamic=True) if calibration else settings
    budget = read_budget(context, settings)
    if compare and str(budget) == "all":
        raise UsageError("--compare --keep all compares a model with itself", "keep less: --keep 11%")
    media, prompt = _read_inputs(sources, prompt, settings)
    session = Session.open(settings)
    from prunesid_cli.pipeline import ask as ask_flow
    from prunesid_cli.pipeline.compare import Outcome
    from prunesid_cli.pipeline.compare import compare as compare_flow
    from prunesid_cli.types import Generation

    checkpoint = session.checkpoint
    sample = information_sample(calibration, checkpoint.name, checkpoint.revision) if calibration else ()
    pruner, language = session.pruner(budget, sample), session.load_language()
    streams = not as_json and not compare and stdout_is_terminal()
    on_text = (lambda text: printer.result(text, end="")) if streams else None
    generation = Generation(max_new_tokens, temperature, seed, on_text)
    if compare:
        outcome, unpruned = compare_flow(pruner, language, media, prompt, generation)
        record = {"tokens": outcome.total, "pruned": outcome.record, "all": unpruned.record}
        text = _comparison_table(outcome, unpruned)
    else:
        answer, items = ask_flow.ask(pruner, language, media, prompt, generation)
        outcome = Outcome(answer, items, pruner.stopwatch.seconds, max_new_tokens)
        record, text = {"tokens": outcome.total} | outcome.record, "" if streams else answer.text
    note_if_all_kept(budget, max(item.layout.total for item in outcome.items))
    seen = [round(item.layout.visible_share, 4) for item in outcome.items]
    warn_if_cropped(seen, len(seen))
    record |= {"seen": seen} if min(seen) < 1 else {}
    if as_json:
        asked = {"sources": [item.source for item in media], "prompt": prompt}
        used = {"model": checkpoint.name, "revision": checkpoint.revision, "method": method, "keep": keep}
        printer.record(asked | used | record)
    else:
        printer.result(text, is_styled=compare)
    if usage:
        printer.requested(_usage_line(outcome))


def _read_inputs(sources: list[str], prompt: str, settings: Settings) -> tuple[list[Media], str]:
    """Loads the images and clips, and the prompt. Only one of them may be stdin."""
    if not sources:
        example = command_line("ask", "picture.jpg", "what is shown?")
        raise UsageError("ask needs an image and a prompt", hint=f"{example} {MODEL_OPTION}")
    if [*sources, prompt].count("-") > 1:
        raise UsageError("stdin can be read only once", hint="give - for one of the arguments only")
    first = sources[0]
    if os.path.isfile(prompt) and first != "-" and not os.path.exists(first):
        corrected = typed_command(moved_to_end=first)
        raise UsageError(f"{first}: no such file or folder", f"the prompt comes last: {corrected}")
    return read_media(sources, settings), read_prompt(prompt)


def _usage_line(outcome: Outcome) -> str:
    """The tokens that were saved, and the time of each stage."""
    answer, num_pruned = outcome.answer, outcome.total - outcome.kept
    parts = [
        f"visual tokens {outcome.total} -> {outcome.kept} ({outcome.kept / outcome.total:.1%})",
        f"prompt {answer.prompt_tokens + num_pruned} -> {answer.prompt_tokens} tokens",
        f"answer {answer.new_tokens}",
        format_stages(outcome.seconds),
    ]
    return "   ".join(parts)


def _comparison_table(pruned: Outcome, unpruned: Outcome) -> str:
    """Both outcomes side by side, as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", f"{pruned.kept / pruned.total:.1%} kept", "all", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    rows: dict[str, Callable[[Outcome], str]] = {
        "answer": lambda outcome: outcome.answer.text,
        "visual tokens": lambda outcome: f"{outcome.kept:,}",
        "prompt tokens": lambda outcome: f"{outcome.answer.prompt_tokens:,}",
        "answer tokens": lambda outcome: f"{outcome.answer.new_tokens:,}",
    }
    for name in pruned.seconds:
        rows[f"{name}, ms"] = lambda outcome, name=name: f"{1000 * outcome.seconds[name]:,.0f}"  # type: ignore[misc]
    rows["all of it, ms"] = lambda outcome: f"{1000 * sum(outcome.seconds.values()):,.0f}"
    for name, value in rows.items():
        cells = (Text(escape_invisible(value(outcome), keep="\n")) for outcome in (pruned, unpruned))
        table.add_row(name, *cells)
    console = Console()
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())
