"""Reads what a command was given: settings, lists, prompts, media and stdin.

Values come from four places (see `SOURCES_BY_RANK`). Of two options that contradict each other, the one from the higher
place wins; two that were both typed are an error. Errors about a value that was not typed say where it came from.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from prunesid_cli.cli.config import KEY_BY_PARAMETER, config_path, load_config
from prunesid_cli.cli.terminal import printer, typed_command
from prunesid_cli.errors import MediaError, UsageError
from prunesid_cli.inputs.text_file import decode_text, read_text_file
from prunesid_cli.models.loading.checkpoint import DEMO, is_local
from prunesid_cli.pipeline.settings import Engine, Settings
from prunesid_cli.text import is_encodable, plural

if TYPE_CHECKING:
    from prunesid_cli.inputs.image import Media
    from prunesid_cli.selection.budget import Budget

SOURCES_BY_RANK = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")
"""Where values come from, as click calls it, the weakest first. DEFAULT_MAP is the configuration file."""


def source_rank(context: typer.Context, name: str) -> int:
    """Rank of the place that the value of a parameter came from; see `SOURCES_BY_RANK`."""
    source = context.get_parameter_source(name)
    return SOURCES_BY_RANK.index(source.name) if source and source.name in SOURCES_BY_RANK else 0


def is_typed(context: typer.Context, name: str) -> bool:
    return SOURCES_BY_RANK[source_rank(context, name)] == "COMMANDLINE"


def value_origin(context: typer.Context, name: str) -> str | None:
    """Where a value came from: an environment variable or the configuration file; None if it was typed or built in."""
    key = KEY_BY_PARAMETER.get(name, name)
    origins = {"ENVIRONMENT": f"PRUNESID_{key.upper()}", "DEFAULT_MAP": f"{key} in {config_path()}"}
    return origins.get(SOURCES_BY_RANK[source_rank(context, name)])


@contextmanager
def name_origin(context: typer.Context, name: str) -> Iterator[None]:
    """Usage errors raised in this block say where the value of the parameter came from, unless it was typed."""
    try:
        yield
    except UsageError as error:
        origin = value_origin(context, name)
        if origin is None:
            raise
        raise UsageError(f"{origin}: {error.problem}", error.hint) from error


def overrides_fixed(context: typer.Context, name: str, option: str) -> bool:
    """Whether an option that implies --dynamic holds. It does not if --fixed comes from a higher place.

    Raises:
        UsageError: Both were typed.
    """
    if context.params["dynamic"] is not False:
        return True
    if is_typed(context, name) and is_typed(context, "dynamic"):
        raise UsageError(f"--fixed and {option} contradict each other", f"{option} implies --dynamic: leave out one")
    return source_rank(context, name) >= source_rank(context, "dynamic")


def read_settings(context: typer.Context, **overrides: Any) -> Settings:
    """The settings among a command's parameters, checked as far as that needs no model.

    Args:
        context: The command's context.
        **overrides: Settings that the command decides otherwise.

    Raises:
        UsageError: The configuration file cannot be read, a value makes no sense, or --frames and --fps were both
            typed.
    """
    load_config()
    given = {field.name: context.params[field.name] for field in fields(Settings) if field.name in context.params}
    settings = Settings(**{name: value for name, value in given.items() if value is not None} | overrides)
    # A revision that was set together with another model does not belong to a folder that was named instead.
    if source_rank(context, "revision") < source_rank(context, "model") and is_local(settings.model or DEMO):
        settings = replace(settings, revision=None)
    if settings.timeout is not None:
        with name_origin(context, "timeout"):
            settings.decoding()
    if settings.fps is not None:
        with name_origin(context, "fps"):
            settings.sampling()
        if is_typed(context, "frames") and is_typed(context, "fps"):
            raise UsageError("--frames and --fps contradict each other", "leave out one")
        if source_rank(context, "frames") > source_rank(context, "fps"):
            settings = replace(settings, fps=None)
    return settings


def read_budget(context: typer.Context, settings: Settings) -> Budget:
    """The budget of some settings; their method is checked, too.

    Raises:
        UsageError: There is no such method, or the budget cannot be read.
    """
    with name_origin(context, "method"):
        settings.check_method()
    with name_origin(context, "keep"):
        return settings.budget()


def split_list(text: str, example: str) -> list[str]:
    """Splits values at commas; repeated values are left out.

    Raises:
        UsageError: There is no value.
    """
    values = list(dict.fromkeys(value.strip() for value in text.split(",") if value.strip()))
    if not values:
        raise UsageError("an empty list", hint=f"separate the values by commas: {example}")
    return values


def open_stdin() -> TextIO:
    """Raises `UsageError` if stdin is closed."""
    if sys.stdin is None:
        raise UsageError("- reads stdin, which is closed", "leave out <&-, or name a file")
    return sys.stdin


def read_prompt(text: str) -> str:
    """A prompt as it was typed, or stdin for "-".

    Raises:
        UsageError: It is empty, or not UTF-8.
    """
    if text == "-":
        stdin = open_stdin()
        text = decode_text(stdin.buffer.read(), "the prompt on stdin", stdin.encoding)
        text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
        if not text:
            raise UsageError("stdin is empty", 'pipe a prompt into it, or type one: "what is shown?"')
    if not is_encodable(text):
        raise UsageError("the prompt is not UTF-8 text", "type it in a terminal that uses UTF-8, or pipe it in")
    if not text.strip():
        raise UsageError("the prompt is empty", 'ask something: "what is shown?"')
    return text


def read_choices(text: str | None) -> tuple[str, ...]:
    """The values of --choices, or the lines of the file that it names. None gives none.

    Raises:
        UsageError: There are less than two.
    """
    if text is None:
        return ()
    if os.path.isfile(text):
        with open(text, "rb") as file:
            values = decode_text(file.read(), text).splitlines()
    else:
        values = text.split(",")
    choices = tuple(dict.fromkeys(value.strip() for value in values if value.strip()))
    if len(choices) < 2:
        what = "is no file, and fewer than two choices" if "," not in text else "has fewer than two choices"
        raise UsageError(f"--choices {text} {what}", "separate them by commas: --choices Yes,No")
    if not all(map(is_encodable, choices)):
        raise UsageError("--choices is not UTF-8 text", "type it again")
    return choices


def read_schema(text: str | None, choices: str | None) -> str:
    """The value of --schema: JSON, or the contents of the file that it names. None gives an empty one.

    Raises:
        UsageError: It is no schema, or there are choices as well.
        ModelError: llguidance is not installed.
    """
    if text is None:
        return ""
    if choices is not None:
        raise UsageError("--schema and --choices contradict each other", "leave out one")
    from prunesid_cli.models.shared.schema import check_schema

    if not text.lstrip().startswith("{"):
        path = Path(text)
        text = decode_text(read_text_file(path, '{"type": "object", "properties": ...}'), text)
    return check_schema(text)


def read_media(sources: Sequence[str], settings: Settings) -> list[Media]:
    """Loads images and clips by name; "-" is an image on stdin.

    Raises:
        MediaError: One cannot be read.
    """
    from prunesid_cli.inputs.image import load_image_bytes
    from prunesid_cli.inputs.video.load import load_media

    media = []
    for source in sources:
        if source == "-":
            data = open_stdin().buffer.read()
            if not data:
                raise MediaError("stdin is empty", f"pipe a picture into it: {typed_command()} < picture.jpg")
            media.append(load_image_bytes(data, source, decoding=settings.decoding()))
        else:
            media.append(load_media(source, settings.sampling(), settings.decoding()))
    for item in media:
        if item.is_clip:
            printer.detail(f"{item.source}: {plural(len(item.frames), 'frame')} by {item.decoder}")
        for note in item.notes:
            printer.note(f"{item.source}: {note}")
    return media


def read_engine_args(engine: Engine, pairs: Sequence[str]) -> dict[str, Any]:
    """Reads NAME=VALUE pairs; a value is JSON, or else a text.

    Raises:
        UsageError: A pair has no name, or the engine takes no arguments.
    """
    if pairs and engine is not Engine.vllm:
        raise UsageError("--engine-args is for vLLM", "add --engine vllm")
    arguments = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not (name and sign):
            raise UsageError(f"--engine-args {pair} is not NAME=VALUE", "--engine-args tensor_parallel_size=2")
        try:
            arguments[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            arguments[name.replace("-", "_")] = value
    return arguments
