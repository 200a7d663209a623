"""What a file of answers holds: 32 bytes a record stay in memory, hashes and where its line is."""

from __future__ import annotations

import json
from array import array
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.errors import UsageError

if TYPE_CHECKING:
    from prunesid_cli.pipeline.answer import Query

START = b'{"id": '
"""Of every line that is written here."""

OTHER = "name another --out, or move the file away"


@dataclass(frozen=True)
class AnswerIndex:
    """The last record about each source and prompt, in rising order of `keys`, their hashes.

    digests  hashes of the inputs' digests, with how the frames of a clip were chosen; 0 for an error
    starts   at which byte its line begins
    numbers  which line that is, from 0
    lines    of the file that are whole, and `end`, their bytes
    """

    keys: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    starts: NDArray[np.uint64]
    numbers: NDArray[np.intp]
    lines: int
    end: int

    def find(self, query: Query) -> int | None:
        """The row of the record about a query, answered or not."""
        key = _hash(query.item.source, query.prompt)
        row = int(np.searchsorted(self.keys, np.uint64(key)))
        return row if row < len(self.keys) and int(self.keys[row]) == key else None

    def is_answer(self, row: int | None, query: Query) -> bool:
        """Whether that is no error, and about the input as it is in the cache."""
        return row is not None and int(self.digests[row]) == _hash(query.item.digest, query.item.sampling)


def read_answer_index(path: Path, by: str) -> AnswerIndex:
    """What a file holds, nothing where there is none; of a line that was cut short, nothing.

    Raises:
        UsageError: a line is none of ours, or was not answered `by` the same.
    """
    table, end = [array("Q"), array("Q"), array("Q")], 0
    with path.open("rb") if path.exists() else nullcontext(()) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n") and (line.startswith(START) or START.startswith(line)):
                break
            for column, value in zip(table, (*_read(line, f"{path}, line {number}", by), end), strict=True):
                column.append(value)
            end += len(line)
    keys, digests, starts = (np.frombuffer(column, np.uint64) for column in table)
    order = np.argsort(keys, kind="stable")
    is_last = np.append(np.diff(keys[order]) != 0, True)[: len(order)]
    last = order[is_last]
    return AnswerIndex(keys[last], digests[last], starts[last], last, len(order), end)


def _read(line: bytes, where: str, by: str) -> tuple[int, int]:
    """The hashes of a record."""
    try:
        record = json.loads(line)
        key, digest = _hash(record["source"], record["prompt"]), _hash(record["digest"], record.get("sampling", ""))
        theirs, failed = str(record["by"]), "answer" not in record
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{where} is no answer of ours", OTHER) from error
    if theirs != by:
        raise UsageError(f"{where} was answered by {theirs}, not by {by}", OTHER)
    return key, 0 if failed else digest


def _hash(*parts: str) -> int:
    """64 bits, never 0."""
    text = "\0".join(parts).encode("utf-8", "surrogatepass")  # file names may hold any byte
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") or 1
