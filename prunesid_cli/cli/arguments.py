"""What a command was given: options, of which two that were typed may contradict each other and one that was not is
named in errors; and stdin."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import typer

from prunesid_cli.cli.config import KEYS, config_path
from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.video.frame_sampling import DEFAULT_FRAMES, FrameSampling
from prunesid_cli.models.loading.checkpoint import DEMO, is_local

RISING = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")
"""Of two sources of values, the later one wins. The second is the configuration file."""


def weight(context: typer.Context, name: str) -> int:
    source = context.get_parameter_source(name)
    return RISING.index(source.name) if source and source.name in RISING else 0


def is_typed(context: typer.Context, name: str) -> bool:
    return RISING[weight(context, name)] == "COMMANDLINE"


def outweighs_fixed(context: typer.Context, name: str, option: str) -> bool:
    """Whether an option that implies --dynamic holds against --fixed, where that is set: as the one with more weight.

    Raises:
        UsageError: both were typed.
    """
    if context.params["dynamic"] is not False:
        return True
    if is_typed(context, name) and is_typed(context, "dynamic"):
        raise UsageError(f"--fixed and {option} contradict each other", f"{option} implies --dynamic: leave out one")
    return weight(context, name) >= weight(context, "dynamic")


def origin(context: typer.Context, name: str) -> str | None:
    """Where the value of an option that was not typed came from; None: it was, or is the built-in one."""
    key = KEYS.get(name, name)
    places = {"ENVIRONMENT": f"PRUNESID_{key.upper()}", "DEFAULT_MAP": f"{key} in {config_path()}"}
    return places.get(RISING[weight(context, name)])


@contextmanager
def naming(context: typer.Context, name: str) -> Iterator[None]:
    """An error about an option that was not typed says where its value came from."""
    try:
        yield
    except UsageError as error:
        place = origin(context, name)
        if place is None:
            raise
        raise UsageError(f"{place}: {error.problem}", error.hint) from error


def read_sampling(context: typer.Context) -> FrameSampling:
    """How to look at clips: by --frames or --fps, whichever has more weight, and in which windows.

    Raises:
        UsageError: both were typed, or the latter is no rate.
    """
    given = context.params
    frames, fps, decoding = given["frames"], given["fps"], (given["video_backend"].value, given.get("window", 1))
    if fps is None:
        return FrameSampling(frames, None, *decoding)
    with naming(context, "fps"):
        if not 0 < fps < math.inf:
            raise UsageError(f"--fps {fps:g} is no rate", "frames a second: 1, or 0.5 for one in two seconds")
    if is_typed(context, "frames") and is_typed(context, "fps"):
        raise UsageError("--frames and --fps contradict each other", "leave out one")
    by_frames = weight(context, "frames") > weight(context, "fps")
    return FrameSampling(frames, None, *decoding) if by_frames else FrameSampling(DEFAULT_FRAMES, fps, *decoding)


def revision_meant(context: typer.Context, model: str | None, revision: str | None) -> str | None:
    """The revision, but for one that was set together with another model, in whose place a folder was named."""
    was_before = weight(context, "revision") < weight(context, "model")
    return None if was_before and is_local(model or DEMO) else revision


def listed(text: str, example: str) -> list[str]:
    """Values separated by commas, each once.

    Raises:
        UsageError: there is none.
    """
    found = list(dict.fromkeys(one.strip() for one in text.split(",") if one.strip()))
    if not found:
        raise UsageError("an empty list", hint=f"separated by commas: {example}")
    return found


def stdin() -> TextIO:
    """What is piped into the command.

    Raises:
        UsageError: there is no such stream.
    """
    if sys.stdin is None:
        raise UsageError("- reads stdin, which is closed", "leave out <&-, or name a file")
    return sys.stdin


def prompt_of(text: str) -> str:
    """A prompt as it was typed, or - for stdin.

    Raises:
        UsageError: it is empty.
    """
    if text == "-":
        text = stdin().read().strip()
        if not text:
            raise UsageError("nothing came on stdin", 'pipe a prompt into it, or type one: "what is shown?"')
    if not text.strip():
        raise UsageError("the prompt is empty", 'ask something: "what is shown?"')
    return text
