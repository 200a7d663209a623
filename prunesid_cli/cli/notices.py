"""Notices that several commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ExitCode

if TYPE_CHECKING:
    from prunesid_cli.selection.budget import Budget
    from prunesid_cli.tokencache import Cache


def note_if_all_kept(budget: Budget, total: int) -> bool:
    """Prints a note if a budget is larger than the number of tokens. Returns whether it is."""
    is_larger = budget.count is not None and budget.count > total
    if is_larger:
        printer.note(f"--keep {budget.count} of {total} visual tokens: all are kept")
    return is_larger


def exit_if_incomplete(cache: Cache) -> None:
    """Prints which shards of a cache are missing or damaged. If there are any, the command ends as partly failed."""
    missing = [cache.missing.error] if cache.missing.numbers else []
    for error in (*missing, *cache.faults.values()):
        printer.error(error)
    if missing or cache.faults:
        raise typer.Exit(ExitCode.PARTIAL)
