"""A listing that is read twice. Its paths are kept in a temporary file, not in memory."""

from __future__ import annotations

import json
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
            columns = json.dumps(file.columns).encode() if file.columns else b""
            texts = () if file.error else (os.fsencode(file.source), columns)
            try:
                self._paths.write(b"".join(len(text).to_bytes(LENGTH_BYTES, "big") + text for text in texts))
            except OSError as error:
                problem = f"cannot store the listing in {tempfile.gettempdir()}: {error.strerror}"
                raise PruneSIDError(problem, "free some space, or set TMPDIR to another folder") from error
            self.count += 1
            yield file

    def replay(self) -> Iterator[ListedFile]:
        """List the recorded files."""
        self._paths.seek(0)
        for number in range(self.count):
            if number in self._errors:
                yield self._errors[number]
                continue
            path, columns = (self._paths.read(int.from_bytes(self._paths.read(LENGTH_BYTES), "big")) for _ in range(2))
            yield ListedFile(os.fsdecode(path), columns=tuple(map(tuple, json.loads(columns or b"[]"))))
