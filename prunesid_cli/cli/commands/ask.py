"""prunesid ask: answers a prompt about images or clips."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import (
    overrides_fixed,
    read_budget,
    read_choices,
    read_media,
    read_prompt,
    read_schema,
    read_settings,
)
from prunesid_cli.cli.ask_report import AskReport
from prunesid_cli.cli.help import COMMON
from prunesid_cli.cli.input_paths import InputPaths
from prunesid_cli.cli.notices import warn_if_cropped
from prunesid_cli.cli.terminal import printer, stdout_is_terminal, typed_command
from prunesid_cli.errors import ExitCode, ModelError, PruneSIDError, UsageError
from prunesid_cli.inputs.listing import EXTENSIONS
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import DEFAULTS
from prunesid_cli.text import MODEL_OPTION, command_line
from prunesid_cli.tokencache import information_sample

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.models.base import LanguageHalf
    from prunesid_cli.pipeline.pruner import Pruner
    from prunesid_cli.types import Generation

EXAMPLE = "what is shown?"


def ask(
    context: typer.Context,
    media_and_prompt: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MEDIA... PROMPT",
            help="Image or video files, then the prompt. One of them may be - for stdin. With --each also folders and "
            "globs, and - is a list of paths.",
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            "-p", "--prompt", metavar="PROMPT", rich_help_panel=COMMON,
            help="The prompt, if all arguments are media. Repeat it to ask several prompts.",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--image", metavar="FILE", rich_help_panel=COMMON, help="An image or video file, as in MEDIA. Repeatable."
        ),
    ] = None,
    each: Annotated[
        bool,
        typer.Option(
            "--each", rich_help_panel=COMMON,
            help="Ask about each image or clip alone, one after the other, instead of about all of them together.",
        ),
    ] = False,
    include: o.Include = None,
    exclude: o.Exclude = None,
    max_items: o.MaxItems = None,
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
    timeout: o.Timeout = DEFAULTS.timeout,
    revision: o.Revision = DEFAULTS.revision,
    device: o.Device = DEFAULTS.device,
    dtype: o.Dtype = DEFAULTS.dtype,
    attention: o.Attention = DEFAULTS.attention,
    system: o.System = DEFAULTS.system,
    choices: o.Choices = None,
    schema: o.Schema = None,
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
) -> None:  # fmt: skip
    """Answer a prompt about one or more images or clips.

    Several images are asked about together, in one prompt. With --each or several prompts, each answer is one JSON
    object a line, or on a terminal one line of text.

    Example: prunesid ask samples/scene5.png "what is shown?"
    """
    printer.check_stdout()
    sources, asked = _read_arguments(media_and_prompt or [], images or [], prompts or [], each)
    if calibration and not overrides_fixed(context, "calibration", "--calibration"):
        calibration = None
    settings = read_settings(context)
    possible, json_schema = read_choices(choices), read_schema(schema, choices)
    settings = replace(settings, dynamic=True) if calibration else settings
    budget = read_budget(context, settings)
    if compare and str(budget) == "all":
        raise UsageError("--compare --keep all compares a model with itself", "keep less: --keep 11%")
    if compare and (each or len(asked) > 1 or choices or schema):
        raise UsageError("--compare takes one prompt, no choices and no schema", "leave out --compare")
    if (include or exclude or max_items) and not each:
        raise UsageError("--include, --exclude and --limit choose among images that are asked one by one", "add --each")
    texts = [read_prompt(text) for text in asked]
    media = [] if each else read_media(sources, settings)
    session = Session.open(settings)
    from prunesid_cli.pipeline.compare import compare as compare_flow
    from prunesid_cli.types import Generation

    checkpoint = session.checkpoint
    sample = information_sample(calibration, checkpoint.name, checkpoint.revision) if calibration else ()
    pruner, language = session.pruner(budget, sample), session.load_language()
    generation = Generation(max_new_tokens, temperature, seed, choices=possible, schema=json_schema)
    report = AskReport(
        used={"model": checkpoint.name, "revision": checkpoint.revision, "method": method, "keep": keep},
        budget=budget,
        prompts=texts,
        is_single=not each and len(texts) == 1,
        as_json=as_json,
    )
    for text in texts:
        language.check_prompt(text, 1 if each else len(media))
    if compare:
        report.add_comparison(media, *compare_flow(pruner, language, media, texts[0], generation))
    elif each:
        inputs = InputPaths(sources, include=include or (), exclude=exclude or (), max_items=max_items)
        for file in inputs.of_this_machine(inputs.listing()):
            try:
                if file.error:
                    raise file.error
                _ask(pruner, language, read_media([file.source], settings), texts, generation, report)
            except UsageError:  # it would come again with each image
                raise
            except PruneSIDError as error:
                report.fail([file.source], texts, error)
    else:
        if len(media) > 1:
            hint = "" if len(texts) > 1 else "; --each asks about each of them alone"
            printer.note(f"one prompt about {len(media)} images or clips together{hint}")
        _ask(pruner, language, media, texts, generation, report)
    warn_if_cropped([round(share, 4) for share in report.seen], len(report.seen))
    if usage:
        printer.requested(report.usage_line())
    if report.num_failed:
        raise typer.Exit(ExitCode.PARTIAL)


def _read_arguments(
    arguments: list[str], images: list[str], prompts: list[str], each: bool
) -> tuple[list[str], list[str]]:
    """The names of media, and the prompts, which are not read yet. Only one of them may be stdin.

    Raises:
        UsageError: One of both is missing.
    """
    if arguments and not prompts:
        *arguments, prompt = arguments
        first = next(iter(arguments), "-")
        if os.path.isfile(prompt) and first != "-" and not (each or os.path.exists(first)):
            corrected = typed_command(moved_to_end=first)
            raise UsageError(f"{first}: no such file or folder", f"the prompt comes last: {corrected}")
        if os.path.isdir(prompt) or (os.path.isfile(prompt) and os.path.splitext(prompt)[1].lower() in EXTENSIONS):
            hint = f"{typed_command()} {shlex.quote(EXAMPLE)}; `-p -` reads it from stdin"
            raise UsageError(f"no prompt is given: {prompt} is a file", hint)
        prompts = [prompt]
    sources = [*arguments, *images]
    if not (sources and prompts):
        example = command_line("ask", "picture.jpg", EXAMPLE)
        piped = "" if sources or not prompts else f"; with an image on stdin: {command_line('ask', '-', EXAMPLE)}"
        raise UsageError("ask needs an image and a prompt", f"{example} {MODEL_OPTION}{piped}")
    if [*sources, *prompts].count("-") > 1:
        raise UsageError("stdin can be read only once", hint="give - for one of the arguments only")
    return sources, prompts


def _ask(
    pruner: Pruner,
    language: LanguageHalf,
    media: Sequence[Media],
    prompts: Sequence[str],
    generation: Generation,
    report: AskReport,
) -> None:
    """Asks all prompts about some media together. These are encoded once."""
    from prunesid_cli.pipeline.ask import answer_items, encode_media, keep_tokens
    from prunesid_cli.pipeline.compare import Outcome
    from prunesid_cli.runtime.stopwatch import Stopwatch

    streams = report.is_single and not report.prints_json and stdout_is_terminal() and not generation.choices
    if streams:
        generation = replace(generation, on_text=lambda text: printer.result(text, end=""))
    encoder = replace(pruner, stopwatch=Stopwatch())
    items = keep_tokens(encoder, media, encode_media(encoder, media))
    report.seen += [item.layout.visible_share for item in items]
    seconds = encoder.stopwatch.seconds
    for prompt in prompts:
        own = replace(pruner, stopwatch=Stopwatch())
        try:
            answer = answer_items(own, language, items, prompt, generation)
        except ModelError as error:  # of this answer alone: it was cut
            if report.is_single:
                raise
            report.fail([item.source for item in media], [prompt], error)
            continue
        outcome = Outcome(answer, items, seconds | own.stopwatch.seconds, generation.max_new_tokens)
        report.add(media, prompt, outcome, was_streamed=streams)
        seconds = dict.fromkeys(seconds, 0.0)  # the first answer has the time of encoding
