"""A listing that is gone through twice, its paths in a temporary file and not in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.inputs.listing import ListedFile


class ReplayableListing:
    """`first` to its end, then `again`: the same in the same order.

    Raises:
        PruneSIDError: the file cannot be written.
    """

    def __init__(self, found: Iterable[ListedFile]) -> None:
        self._found = found
        self._faulty = dict[int, ListedFile]()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self.count = 0

    def first_pass(self) -> Iterator[ListedFile]:
        for one in self._found:
            if one.error:
                self._faulty[self.count] = one
            self._write(b"" if one.error else os.fsencode(one.source))
            self.count += 1
            yield one

    def _write(self, name: bytes) -> None:
        try:
            self._file.write(len(name).to_bytes(4, "big") + name)
        except OSError as error:
            problem = f"cannot remember the listing in {tempfile.gettempdir()}: {error.strerror}"
            raise PruneSIDError(problem, "free some space, or set TMPDIR to another folder") from error

    def replay(self) -> Iterator[ListedFile]:
        self._file.seek(0)
        for number in range(self.count):
            name = self._file.read(int.from_bytes(self._file.read(4), "big"))
            yield self._faulty.get(number) or ListedFile(os.fsdecode(name))
