"""prunesid models: lists what can be loaded, describes a model, and sets the default."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from prunesid_cli.cli import options as o
from prunesid_cli.cli.config import load_config, set_model
from prunesid_cli.cli.help import PlainCommand, PlainGroup
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import PruneSIDError
from prunesid_cli.models import FAMILIES, load_family
from prunesid_cli.models.loading.checkpoint import ALIASES, DEMO, DEMO_FOLDER, resolve
from prunesid_cli.models.loading.hub import find_weights

EMBEDDED = {DEMO: "the embedded model: drawn scenes only, needs no network"}

app = typer.Typer(cls=PlainGroup, invoke_without_command=True)


@app.callback()
def list_models(context: typer.Context, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """List the models that can be loaded, and set the default.

    Any repo or folder of the supported types can be named as well as an alias.
    """
    if not context.invoked_subcommand:
        _print_models()


def _print_models() -> None:
    """Print a line for each model that has a short name. Neither torch nor transformers is imported."""
    default = os.environ.get("PRUNESID_MODEL") or load_config().get("model", DEMO)
    listed = EMBEDDED | ALIASES
    if default not in listed and default not in listed.values():
        printer.result(f"* {default}")
    width = max(map(len, listed))
    for name, repo in listed.items():
        printer.result(f"{'*' if default in (name, repo) else ' '} {name:{width}} {repo}")
    printer.note(f"* is the default. Any repo or folder of these types can be named too: {', '.join(FAMILIES)}")


@app.command("ls", cls=PlainCommand)
def list_in_detail(
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """List the models that have a short name; with --json, also what is downloaded and how large it is.

    Example: prunesid models ls --json | jq 'select(.downloaded)'
    """
    if not as_json:
        _print_models()
        return
    for alias, repo in {DEMO: DEMO, **ALIASES}.items():
        folder = DEMO_FOLDER if alias == DEMO else find_weights(repo)
        record: dict[str, Any] = {"alias": alias, "name": repo, "downloaded": folder is not None}
        if folder:
            record["disk_bytes"] = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            try:
                record |= _describe(repo)
            except PruneSIDError as error:
                record["error"] = error.problem
        printer.record(record)


@app.command(cls=PlainCommand)
def info(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An alias, a repo id or a folder.")],
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Show what would happen with a model: its adapter, its memory, and the tokens of an image of 1280 x 960 pixels.

    Only its configuration is read, and no weights.

    Example: prunesid models info qwen2.5-vl-7b
    """
    record = _describe(name)
    if as_json:
        printer.record(record)
        return
    vision, language = (decimal(record[f"{half}_bytes"]) for half in ("vision", "language"))
    needed = f", and clips with the package {record['clips_need']}" if record["clips_need"] else ""
    lines = {
        "model": f"{record['name']} ({record['model_type']})",
        "adapter": f"{record['family']}, cut {record['cut']}",
        "reads": "images and clips" if record["clips"] else f"images{needed}",
        "weights in bf16": f"vision half {vision}, language half {language}",
        "1280 x 960 pixels": f"{record['image_tokens']:,} visual tokens, {record['kept_tokens']:,} kept by default",
        "in a cache": f"{decimal(record['cache_bytes'])} an image, {record['token_width']:,} numbers a token",
    }
    for title, text in lines.items():
        printer.result(f"{title:18} {text}")
    if record["model_type"] not in FAMILIES:
        printer.note("this type was not tried yet: the first run compares its two halves with the whole model")


def _describe(name: str) -> dict[str, Any]:
    """What is known of a model by its configuration."""
    from prunesid_cli.pipeline.model_info import describe_model

    return asdict(describe_model(resolve(name)))


@app.command(cls=PlainCommand)
def use(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An alias, a repo id or a folder.")],
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Make a model the default.

    Example: prunesid models use qwen2.5-vl-7b
    """
    checkpoint = resolve(name)
    load_family(checkpoint.model_type)
    path = set_model(checkpoint.name)  # a folder by its absolute path: the next command may run elsewhere
    printer.note(f"{checkpoint.name} is now the default, by {path}")
