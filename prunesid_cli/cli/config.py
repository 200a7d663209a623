"""The user's configuration file: defaults for options. The command line and the environment override it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import typer

from prunesid_cli.errors import PruneSIDError, UsageError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.text import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PARAMETER_BY_KEY = {"attn": "attention", "json": "as_json"}
"""Keys of the file whose command parameter has another name."""
KEY_BY_PARAMETER = {parameter: key for key, parameter in PARAMETER_BY_KEY.items()}
IGNORED_PARAMETERS: dict[str, tuple[str, ...]] = {
    "ask": (),
    "compress": (),
    "show": (),
    "answer": ("model", "revision"),  # a cache brings its own
    "evaluate": ("keep", "method"),  # what is compared
    "bench": ("batch_size",),  # what is measured
}
"""The commands that read the file, and the parameters that they do not take from it."""


NO_HOME = "~"
"""First part of the path if the home folder is unknown."""


def config_path() -> Path:
    """`config.toml` in the system's application folder: on Linux `~/.config/prunesid`, or under `$XDG_CONFIG_HOME`.

    It begins with `NO_HOME`, and names no file, if the user has no home folder.
    """
    return Path(typer.get_app_dir("prunesid")) / "config.toml"


def load_config() -> dict[str, Any]:
    """The contents of the file. Keys are long option names with underscores: `model`, `keep`, `max_new_tokens`.

    Raises:
        UsageError: The file is not TOML, or cannot be read.
    """
    path = config_path()
    try:
        has_file = path.parts[0] != NO_HOME and path.is_file()
        return tomllib.loads(path.read_text(encoding="utf-8")) if has_file else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint="mend or delete it") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check it with: ls -l") from error


def default_map() -> dict[str, Any]:
    """The configuration as click reads it: defaults for each command.

    A file that cannot be read gives no defaults, so that the help still works, and the command that mends the file.
    Commands that need the file call `load_config`, which raises the error.
    """
    try:
        config = load_config()
    except UsageError:
        return {}
    values = {PARAMETER_BY_KEY.get(key, key): value for key, value in config.items()}
    return {
        command: {key: value for key, value in values.items() if key not in ignored}
        for command, ignored in IGNORED_PARAMETERS.items()
    }


def unknown_keys(parameters: Collection[str]) -> Iterator[str]:
    """Warnings about keys of the file that are not among the parameters of the commands."""
    known = {KEY_BY_PARAMETER.get(parameter, parameter) for parameter in parameters}
    try:
        config = load_config()
    except UsageError:
        return
    for key, value in config.items():
        if isinstance(value, dict):
            yield f"[{key}] in {config_path()} is not read: options stand above all tables"
        elif key not in known:
            match = nearest(key, known)
            yield f"{key} in {config_path()} is not an option" + (f": did you mean {match}?" if match else "")


def set_model(name: str) -> Path:
    """Makes `name` the default model. The rest of the file stays, except for a revision, which was the old model's.

    Returns:
        The path of the file.

    Raises:
        UsageError: The file cannot be read, or changed without breaking it.
        PruneSIDError: The file cannot be written.
    """
    load_config()
    path = config_path()
    if path.parts[0] == NO_HOME:
        raise UsageError("there is no home folder for the configuration", hint="set HOME, or XDG_CONFIG_HOME")
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = old.splitlines()
    first_table = next((row for row, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    kept = [line for line in lines[:first_table] if not re.match(r"""\s*["']?(model|revision)["']?\s*=""", line)]
    text = "\n".join([f"model = {json.dumps(name, ensure_ascii=False)}", *kept, *lines[first_table:]]) + "\n"
    try:
        if tomllib.loads(text)["model"] != name:
            raise ValueError("the name cannot be written as TOML")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(text.encode()))
    except OSError as error:
        hint = "make a folder there that can be written, or set XDG_CONFIG_HOME"
        raise PruneSIDError(f"cannot set the model in {path}: {error.strerror or error}", hint) from error
    except ValueError as error:
        raise UsageError(f"cannot set the model in {path}: {error}", hint="write it there by hand") from error
    return path
