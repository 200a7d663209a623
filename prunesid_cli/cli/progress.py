"""What a bar on a terminal shows."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Rate(ProgressColumn):
    """Of the last half minute."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:,.1f}/s")


class Failures(ProgressColumn):
    def render(self, task: Task) -> Text:
        failed = task.fields["failed"]
        return Text(f"{failed:,} failed" if failed else "", style="red")


def new_bar(what: str, total: int | None) -> Progress:
    """How many of how many, how quickly, how much longer, and what failed so far."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    # rich would take stdout over, and print results on stderr.
    bar = Progress(*columns, Failures(), console=Console(stderr=True), transient=True, redirect_stdout=False)
    bar.add_task(what, total=total, failed=0)
    return bar
