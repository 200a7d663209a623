"""prunesid ask: images or clips and a prompt in, an answer out."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli.cli import compare as sides
from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import outweighs_fixed, prompt_of, read_sampling, revision_meant
from prunesid_cli.cli.choices import Attention, Backend, Dtype
from prunesid_cli.cli.compress_report import note_if_all
from prunesid_cli.cli.media_arguments import read_media
from prunesid_cli.cli.terminal import printer, stdout_is_terminal
from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_FRAMES
from prunesid_cli.pipeline.session import Hardware, Session, read_budget
from prunesid_cli.text import format_stages
from prunesid_cli.tokencache import information_sample

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.inputs.video.frame_sampling import FrameSampling
    from prunesid_cli.runtime.stopwatch import Stopwatch
    from prunesid_cli.types import Answer, TokenSet


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
    calibration: o.Calibration = None,
    method: o.Method = "prunesid",
    frames: o.Frames = DEFAULT_FRAMES,
    fps: o.Fps = None,
    window: o.Window = 1,
    video_backend: o.VideoBackend = Backend.auto,
    device: o.Device = "auto",
    dtype: o.DtypeOption = Dtype.auto,
    attention: o.AttentionOption = Attention.auto,
    max_new_tokens: o.MaxNewTokens = 128,
    temperature: o.Temperature = 0.0,
    seed: o.Seed = 0,
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
    printer.check()
    *sources, prompt = media_and_prompt
    if calibration and not outweighs_fixed(context, "calibration", "--calibration"):
        calibration = None
    budget = read_budget(context, keep, True if calibration else dynamic, method)
    if compare and str(budget) == "all":
        raise UsageError("--compare --keep all compares a thing with itself", "keep less: --keep 11%")
    sampling = read_sampling(context)
    media, prompt = _read_inputs(sources, prompt, sampling)
    session = Session.open(model, revision_meant(context, model, revision), Hardware(device, dtype, attention))
    from prunesid_cli.pipeline import compress as pipeline
    from prunesid_cli.types import Generation

    sample = information_sample(calibration, session.checkpoint.name, session.checkpoint.revision) if calibration else ()
    pruner = session.pruner(budget, method, sample, sampling)
    streams = not as_json and not compare and stdout_is_terminal()
    stream = (lambda text: printer.result(text, end="")) if streams else None
    asked = pruner, session.language(), media, prompt, Generation(max_new_tokens, temperature, seed, stream)
    if compare:
        pruned, whole = sides.compare(*asked)
        answer, items = pruned.answer, pruned.items
        pruner.stopwatch.seconds |= pruned.seconds
        record = {"tokens": pruned.total, "pruned": pruned.record, "all": whole.record}
        text = sides.table(pruned, whole)
    else:
        answer, items = pipeline.ask(*asked)
        given = sides.Side(answer, items, pruner.stopwatch.seconds, max_new_tokens)
        record, text = {"tokens": given.total} | given.record, "" if stream else answer.text
    note_if_all(budget, max(item.layout.total for item in items))
    if as_json:
        printer.record(_about(session, media, prompt) | {"method": method, "keep": keep} | record)
    else:
        printer.result(text)
    if usage:
        printer.usage(_usage(pruner.stopwatch, answer, items))


def _read_inputs(sources: list[str], prompt: str, sampling: FrameSampling) -> tuple[list[Media], str]:
    """Load the images, the clips and the prompt, stdin once at most."""
    if not sources:
        raise UsageError("ask needs an image and a prompt", hint='prunesid ask picture.jpg "what is shown?"')
    if [*sources, prompt].count("-") > 1:
        raise UsageError("stdin can be read once", hint="give - for one of the arguments only")
    first, *others = sources
    if os.path.isfile(prompt) and first != "-" and not os.path.exists(first):
        typed = shlex.join(["prunesid", "ask", *others, prompt, first])
        raise UsageError(f"{first}: no such file or folder", f"the prompt comes last: {typed}")
    return read_media(sources, sampling), prompt_of(prompt)


def _about(session: Session, media: list[Media], prompt: str) -> dict[str, Any]:
    return {
        "sources": [item.source for item in media],
        "prompt": prompt,
        "model": session.checkpoint.name,
        "revision": session.checkpoint.revision,
    }


def _usage(stopwatch: Stopwatch, answer: Answer, items: list[TokenSet]) -> str:
    """What was saved, and what the rest took, in one line."""
    total, kept = sum(item.layout.total for item in items), sum(item.kept for item in items)
    parts = [
        f"visual tokens {total} -> {kept} ({kept / total:.1%})",
        f"prompt {answer.prompt_tokens + total - kept} -> {answer.prompt_tokens} tokens",
        f"answer {answer.new_tokens}",
        format_stages(stopwatch.seconds),
    ]
    return "   ".join(parts)
