"""The user's configuration file: defaults for options, below the environment and above the built-in ones."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from prunesid_cli.errors import UsageError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.text import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PARAMETERS = {"attn": "attention", "json": "as_json"}
"""Options whose parameter has another name."""
KEYS = {parameter: key for key, parameter in PARAMETERS.items()}
"""The other way round."""
DEFAULTS: dict[str, tuple[str, ...]] = {
    "ask": (),
    "compress": (),
    "show": (),
    "answer": ("model", "revision"),  # a cache brings its own
    "evaluate": ("keep", "method"),  # what is compared
    "bench": ("batch_size",),  # what is measured
}
"""Commands that take their defaults from the file, and which of them they do not."""


def config_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "prunesid" / "config.toml"


def load_config() -> dict[str, Any]:
    """The file's keys are long option names with underscores: `model`, `keep`, `max_new_tokens` ...

    Raises:
        UsageError: the file is not TOML, or cannot be read.
    """
    path = config_path()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint="mend or delete it") from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="check it with: ls -l") from error


def default_map() -> dict[str, Any]:
    """The configuration as click reads it: the defaults of each command.

    A broken file gives none: it must not take the help, or the command that mends it, with it. What does need it calls
    `load_config` and says so.
    """
    try:
        found = load_config()
    except UsageError:
        return {}
    config = {PARAMETERS.get(key, key): value for key, value in found.items()}
    return {
        command: {key: value for key, value in config.items() if key not in others}
        for command, others in DEFAULTS.items()
    }


def unknown_keys(parameters: Collection[str]) -> Iterator[str]:
    """What is wrong with keys of the file that are none of the options of those parameters. A broken file: see
    `default_map`."""
    known = {KEYS.get(one, one) for one in parameters}
    try:
        found = load_config()
    except UsageError:
        return
    for key, value in found.items():
        if isinstance(value, dict):
            yield f"[{key}] in {config_path()} is not read: options stand above all tables"
        elif key not in known:
            meant = nearest(key, known)
            yield f"{key} in {config_path()} is no option" + (f": did you mean {meant}?" if meant else "")


def set_model(name: str) -> Path:
    """Make `name` the default model, leaving the rest of the file as it is; a revision was the old model's.

    Raises:
        UsageError: the file cannot be read, written, or changed without breaking it.
    """
    load_config()
    path = config_path()
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = old.splitlines()
    tables = next((at for at, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    top = [line for line in lines[:tables] if not re.match(r"""\s*["']?(model|revision)["']?\s*=""", line)]
    text = "\n".join([f"model = {json.dumps(name, ensure_ascii=False)}", *top, *lines[tables:]]) + "\n"
    try:
        if tomllib.loads(text)["model"] != name:
            raise ValueError("the name does not survive")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda beside: beside.write_text(text, encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot set the model in {path}: {error}", hint="write it there by hand") from error
    return path
