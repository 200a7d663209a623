"""Notices that several commands print."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

import typer

from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ExitCode
from prunesid_cli.text import plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prunesid_cli.selection.budget import Budget
    from prunesid_cli.tokencache import Cache

FULLY_VISIBLE = 0.995
"""Share of a picture from which it counts as seen completely: rounding can cost a row of pixels."""


def warn_if_cropped(seen: Sequence[float], num_inputs: int, noun: str = "input") -> None:
    """Prints one warning if the model's processor crops images, so that the model does not see all of them.

    Args:
        seen: For each cropped input, the share of its area that the model sees.
        num_inputs: Number of all inputs.
        noun: What an input is called.
    """
    lost = [1 - share for share in seen if share < FULLY_VISIBLE]
    if lost:
        counts = f"{len(lost):,} of {plural(num_inputs, noun)}"
        shares = f"{format_share(fmean(lost))} of their area, at most {format_share(max(lost))} of one"
        shares = shares if len(lost) > 1 else f"{format_share(lost[0])} of its area"
        printer.warning(f"cropped: {counts}; the model does not see {shares}; to keep all of it: --fit pad")


def format_share(share: float) -> str:
    """A share as a percentage, which is 100% only if it is all."""
    return f"{share if share == 1 else min(share, 0.99):.0%}"


def note_if_all_kept(budget: Budget, total: int) -> bool:
    """Prints a note if a budget is larger than the number of tokens. Returns whether it is."""
    is_larger = budget.count is not None and budget.count > total
    if is_larger:
        printer.note(f"--keep {budget.count} of {total} visual tokens: all are kept")
    return is_larger


def exit_if_incomplete(cache: Cache) -> None:
    """Prints what of a cache is missing, damaged or not there yet. If it is damaged, the command fails in part."""
    from prunesid_cli.tokencache.journal import count_unfinished

    if num_unfinished := count_unfinished(cache.folder):
        items = plural(num_unfinished, "item")
        printer.warning(f"{items} of a run that was interrupted, or goes on, are not here yet: compress adds them")
    missing = [cache.missing.error] if cache.missing.numbers else []
    for error in (*missing, *cache.faults.values()):
        printer.error(error)
    if missing or cache.faults:
        raise typer.Exit(ExitCode.PARTIAL)
