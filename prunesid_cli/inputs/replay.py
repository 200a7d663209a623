"""A listing that is read twice. Its paths are kept in a temporary file, not in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator

from prunesid_cli.errors import PruneSIDError
from prunesid_cli.inputs.listing import ListedFile

LENGTH_BYTES = 4


class ReplayableListing:
    """Gives a listing by `first_pass`, to be read to its end, and then again by `replay`, in the same order.

    Attributes:
        count: Number of files listed so far.
    """

    def __init__(self, listing: Iterable[ListedFile]) -> None:
        self._listing = listing
        self._errors = dict[int, ListedFile]()
        self._paths = tempfile.TemporaryFile()  # noqa: SIM115
        self.count = 0

    def first_pass(self) -> Iterator[ListedFile]:
        """List the files, and record them.

        Raises:
            PruneSIDError: The temporary file cannot be written.
        """
        for file in self._listing:
            if file.error:
                self._errors[self.count] = file
            path = b"" if file.error else os.fsencode(file.source)
            try:
                self._paths.write(len(path).to_bytes(LENGTH_BYTES, "big") + path)
            except OSError as error:
                problem = f"cannot store the listing in {tempfile.gettempdir()}: {error.strerror}"
                raise PruneSIDError(problem, "free some space, or set TMPDIR to another folder") from error
            self.count += 1
            yield file

    def replay(self) -> Iterator[ListedFile]:
        """List the recorded files."""
        self._paths.seek(0)
        for number in range(self.count):
            length = int.from_bytes(self._paths.read(LENGTH_BYTES), "big")
            path = self._paths.read(length)
            yield self._errors.get(number) or ListedFile(os.fsdecode(path))
