"""prunesid models: what can be loaded, and which is the default."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.config import load_config, set_model
from prunesid_cli.cli.terminal import printer
from prunesid_cli.models import FAMILIES, load_family
from prunesid_cli.models.loading.checkpoint import ALIASES, DEMO, resolve

LISTED = {DEMO: "the embedded model: drawn scenes only, needs no network"}

app = typer.Typer(invoke_without_command=True, help="Show what can be loaded; set the default.")


@app.callback()
def list_models(context: typer.Context, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """Show what can be loaded; set the default."""
    if context.invoked_subcommand:
        return
    chosen = os.environ.get("PRUNESID_MODEL") or load_config().get("model", DEMO)
    listed = LISTED | ALIASES
    if chosen not in listed and chosen not in listed.values():
        printer.result(f"* {chosen}")
    width = max(map(len, listed))
    for name, repo in listed.items():
        printer.result(f"{'*' if chosen in (name, repo) else ' '} {name:{width}} {repo}")
    printer.note(f"* is the default. Any repo or folder of these types can be named too: {', '.join(FAMILIES)}")


@app.command()
def use(
    name: Annotated[str, typer.Argument(help="An alias, a repo id or a folder.")],
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Make a model the default."""
    checkpoint = resolve(name)
    load_family(checkpoint.model_type)
    path = set_model(checkpoint.name)  # a folder by its whole path: the next command may start elsewhere
    printer.note(f"{checkpoint.name} is now the default, by {path}")
