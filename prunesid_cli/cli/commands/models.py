"""prunesid models: lists what can be loaded, and sets the default."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.config import load_config, set_model
from prunesid_cli.cli.help import PlainCommand, PlainGroup
from prunesid_cli.cli.terminal import printer
from prunesid_cli.models import FAMILIES, load_family
from prunesid_cli.models.loading.checkpoint import ALIASES, DEMO, resolve

EMBEDDED = {DEMO: "the embedded model: drawn scenes only, needs no network"}

app = typer.Typer(cls=PlainGroup, invoke_without_command=True)


@app.callback()
def list_models(context: typer.Context, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """List the models that can be loaded, and set the default.

    Any repo or folder of the supported types can be named as well as an alias.
    """
    if context.invoked_subcommand:
        return
    default = os.environ.get("PRUNESID_MODEL") or load_config().get("model", DEMO)
    listed = EMBEDDED | ALIASES
    if default not in listed and default not in listed.values():
        printer.result(f"* {default}")
    width = max(map(len, listed))
    for name, repo in listed.items():
        printer.result(f"{'*' if default in (name, repo) else ' '} {name:{width}} {repo}")
    printer.note(f"* is the default. Any repo or folder of these types can be named too: {', '.join(FAMILIES)}")


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
