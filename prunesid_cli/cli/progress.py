"""Progress bars on a terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass(frozen=True)
class ProgressBar:
    """A bar with a single task. Without a `rich` progress it draws nothing."""

    progress: Progress | None

    def advance(self, count: int = 1, has_failed: bool = False) -> None:
        """Counts finished items, and whether the last one failed."""
        if self.progress is not None:
            task = self.progress.tasks[0]
            self.progress.update(task.id, advance=count, failed=task.fields["failed"] + has_failed)

    def set_total(self, total: int) -> None:
        """Sets the number of items, once it is known."""
        if self.progress is not None:
            self.progress.update(self.progress.tasks[0].id, total=total)


def new_bar(description: str, total: int | None) -> Progress:
    """A bar that shows how many items are done, the rate, the time left, and how many failed."""
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

    class RateColumn(ProgressColumn):
        """Items per second, over the last half minute."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.1f}/s")

    class FailureColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            failed = task.fields["failed"]
            return Text(f"{failed:,} failed" if failed else "", style="red")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn(), TimeRemainingColumn())
    # rich would redirect stdout, and print results on stderr.
    console = Console(stderr=True)
    bar = Progress(*columns, FailureColumn(), console=console, transient=True, redirect_stdout=False)
    bar.add_task(description, total=total, failed=0)
    return bar
