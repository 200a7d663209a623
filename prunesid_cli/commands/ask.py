"""prunesid ask: images or clips and a prompt in, an answer out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli.commands import options as o
from prunesid_cli.commands.given import outweighs_fixed, prompt_of, read_sampling, revision_meant, stdin
from prunesid_cli.commands.report import note_if_all
from prunesid_cli.commands.session import Hardware, Session, read_budget
from prunesid_cli.errors import MediaError, UsageError
from prunesid_cli.output import plural, printer, stages, stdout_is_terminal
from prunesid_cli.tokencache import sample_of
from prunesid_cli.video.sampling import FRAMES

if TYPE_CHECKING:
    from prunesid_cli.media import Media
    from prunesid_cli.pruner import Clock
    from prunesid_cli.types import Answer, TokenSet
    from prunesid_cli.video.sampling import Sampling


def ask(
    context: typer.Context,
    media_and_prompt: Annotated[
        list[str],
        typer.Argument(
            metavar="MEDIA... PROMPT", help="Image or video files, then the prompt. One may be - for stdin."
        ),
    ],
    model: o.Model = None,
    revision: o.Revision = None,
    keep: o.Keep = "11%",
    dynamic: o.Dynamic = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="CACHE",
            rich_help_panel=o.PRUNING,
            help="Implies --dynamic: an average image is one of this cache, by compress --calibrate or as it is.",
        ),
    ] = None,
    method: o.Method = "prunesid",
    frames: o.Frames = FRAMES,
    fps: o.Fps = None,
    window: o.Window = 1,
    video_backend: o.VideoBackend = o.Backend.auto,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    attention: o.AttentionOption = o.Attention.auto,
    max_new_tokens: o.MaxNewTokens = 128,
    temperature: o.Temperature = 0.0,
    seed: o.Seed = 0,
    as_json: o.Json = False,
    usage: o.Usage = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Answer a prompt about one or more images or clips.

    Example: prunesid ask samples/scene5.png "what is shown?"
    """
    printer.check()
    *sources, prompt = media_and_prompt
    if calibration and not outweighs_fixed(context, "calibration", "--calibration"):
        calibration = None
    budget = read_budget(context, keep, True if calibration else dynamic, method)
    sampling = read_sampling(context)
    media, prompt = _read_inputs(sources, prompt, sampling)
    session = Session.open(model, revision_meant(context, model, revision), Hardware(device, dtype, attention))
    from prunesid_cli import pipeline
    from prunesid_cli.types import Generation

    sample = sample_of(calibration, session.checkpoint.name, session.checkpoint.revision) if calibration else ()
    pruner = session.pruner(budget, method, sample, sampling)
    language = session.language()
    stream = None if as_json or not stdout_is_terminal() else lambda text: printer.result(text, end="")
    how = Generation(max_new_tokens, temperature, seed, stream)
    answer, items = pipeline.ask(pruner, language, media, prompt, how)
    note_if_all(budget, max(item.layout.total for item in items))
    if as_json:
        printer.record(_record(session, media, prompt, answer, items))
    else:
        printer.result("" if stream else answer.text)
    if usage:
        printer.usage(_usage(pruner.clock, answer, items))


def _read_inputs(sources: list[str], prompt: str, sampling: Sampling) -> tuple[list[Media], str]:
    """Load the images, the clips and the prompt, stdin once at most."""
    if not sources:
        raise UsageError("ask needs an image and a prompt", hint='prunesid ask picture.jpg "what is shown?"')
    if [*sources, prompt].count("-") > 1:
        raise UsageError("stdin can be read once", hint="give - for one of the arguments only")
    from prunesid_cli.media import load_image_bytes
    from prunesid_cli.video.reading import load_media

    media = [load_image_bytes(_piped(), "-") if one == "-" else load_media(one, sampling) for one in sources]
    for item in media:
        if item.is_clip:
            printer.detail(f"{item.source}: {plural(len(item.frames), 'frame')} by {item.decoder}")
        for note in item.notes:
            printer.note(f"{item.source}: {note}")
    return media, prompt_of(prompt)


def _piped() -> bytes:
    data = stdin().buffer.read()
    if not data:
        raise MediaError(
            "nothing came on stdin", 'pipe a picture into it: prunesid ask - "what is shown?" < picture.jpg'
        )
    return data


def _record(session: Session, media: list[Media], prompt: str, answer: Answer, items: list[TokenSet]) -> dict[str, Any]:
    return {
        "sources": [item.source for item in media],
        "prompt": prompt,
        "answer": answer.text,
        "model": session.checkpoint.name,
        "revision": session.checkpoint.revision,
        "tokens": sum(item.layout.total for item in items),
        "kept": sum(item.kept for item in items),
        "prompt_tokens": answer.prompt_tokens,
        "new_tokens": answer.new_tokens,
    }


def _usage(clock: Clock, answer: Answer, items: list[TokenSet]) -> str:
    total, kept = sum(item.layout.total for item in items), sum(item.kept for item in items)
    prompt = f"prompt {answer.prompt_tokens + total - kept} -> {answer.prompt_tokens}"
    tokens = f"visual tokens {total} -> {kept} ({kept / total:.1%})   {prompt}   answer {answer.new_tokens}"
    return f"{tokens}\n{stages(clock.seconds)}"
