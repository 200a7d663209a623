"""The user's configuration file: defaults for options, below the environment and above the built-in ones."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from prunesid_cli.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PARAMETERS = {"attn": "attention", "json": "as_json"}
"""Options whose parameter has another name."""


def config_path() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "prunesid" / "config.toml"


def load_config() -> dict[str, Any]:
    """The file's keys are long option names with underscores: `model`, `keep`, `max_new_tokens` ...

    Raises:
        UsageError: the file is not TOML.
    """
    path = config_path()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}", hint="mend or delete it") from error


def default_map() -> dict[str, Any]:
    """The configuration as click reads it: the same defaults for each command. A cache brings its own model."""
    config = {PARAMETERS.get(key, key): value for key, value in load_config().items()}
    of_a_cache = {key: value for key, value in config.items() if key not in ("model", "revision")}
    return {"ask": config, "compress": config, "answer": of_a_cache}


def set_model(name: str) -> Path:
    """Make `name` the default model, leaving the rest of the file as it is."""
    load_config()
    path = config_path()
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    kept = [line for line in lines if line.split("=")[0].strip() != "model"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"model = {json.dumps(name)}", *kept]) + "\n", encoding="utf-8")
    return path
