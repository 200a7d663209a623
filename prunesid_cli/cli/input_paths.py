"""The paths that a command was given: files, folders, globs, or a list of them on stdin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from threading import Thread

from prunesid_cli.cli.arguments import open_stdin
from prunesid_cli.cli.progress import ProgressBar
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import PruneSIDError
from prunesid_cli.inputs.containers import ContainerOptions
from prunesid_cli.inputs.files import Files
from prunesid_cli.inputs.glob_paths import expand_ranges, matches_path
from prunesid_cli.inputs.listing import EXCLUDED, ListedFile, Listing
from prunesid_cli.inputs.named_sources import select_named
from prunesid_cli.inputs.path_list import read_list
from prunesid_cli.inputs.sharding import Partition
from prunesid_cli.inputs.table_files import expand_tables

STDIN = "-"


@dataclass(frozen=True)
class InputPaths:
    """Paths to list.

    Attributes:
        paths: As the user typed them. "-" stands for a list on stdin, unless they are `exact`.
        null: Whether that list is separated by NUL.
        partition: Which of the listed files are for this machine.
        exact: Whether the paths are names of inputs, and nothing else.
        include: Globs that a file must match, if there are any.
        exclude: Globs that it must not match.
        max_items: How many of the files are taken, the first ones; None: all.
        containers: How containers and tables are listed.
    """

    paths: Sequence[str | ListedFile]
    null: bool = False
    partition: Partition = field(default_factory=Partition)
    exact: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    max_items: int | None = None
    containers: ContainerOptions = field(default_factory=ContainerOptions)

    def listing(self, on_folder: Callable[[str], None] = lambda path: None) -> Listing:
        """Lists the files, lazily. `on_folder` is called with folders that were read and globs that matched."""
        return Listing(self.expanded(), self._report_skip, on_folder, self._is_wanted, Files(self.containers))

    def _is_wanted(self, path: str) -> bool:
        is_included = not self.include or any(matches_path(path, pattern) for pattern in self.include)
        return is_included and not any(matches_path(path, pattern) for pattern in self.exclude)

    def of_this_machine(self, files: Iterable[ListedFile]) -> Iterator[ListedFile]:
        """The files of this machine's partition; of these, at most `max_items`."""
        return islice((file for file in files if self.partition.takes(file.source)), self.max_items)

    def count_in_background(self, bar: ProgressBar) -> None:
        """Lists all files once more in a thread, so that the bar knows how many there are. Stdin cannot be counted."""
        if bar.progress is None or (STDIN in self.paths and not self.exact):
            return

        def count() -> None:
            listing = Listing(self.expanded(), is_wanted=self._is_wanted, files=Files(self.containers))
            with suppress(PruneSIDError):  # the run reports it
                bar.set_total(sum(1 for _ in self.of_this_machine(listing)))

        Thread(target=count, name="count", daemon=True).start()

    def expanded(self) -> Iterator[str | ListedFile]:
        """The paths, with those of the list on stdin, which can be read once, and the rows of tables."""
        for path in self.paths:
            if self.exact or not isinstance(path, str):
                yield path
            elif path == STDIN:
                yield from read_list(open_stdin().buffer, self.null)
            else:
                yield from expand_tables(expand_ranges(path) if "{" in path else [path], self.containers)

    def only(self, names: Sequence[str]) -> InputPaths:
        """Those of some inputs that these paths name."""
        wanted, rows, paths = set(names), list[str | ListedFile](), list[str]()
        for path in self.expanded():
            if isinstance(path, str):
                paths.append(path)
            elif path.source in wanted:
                rows.append(path)
        return replace(self, paths=[*rows, *select_named(names, paths)], exact=True, partition=Partition())

    @staticmethod
    def _report_skip(reason: str, path: str) -> None:
        if reason != EXCLUDED:  # there may be a million of them, and the user chose them
            printer.detail(f"{path}: {reason}, skipped")
