"""Answers in a file, JSON a line, to which the same run goes on to add when it was interrupted.

A record says what was asked (`source`, `digest` of the input, `sampling` of a clip, `prompt`) and `by` what it was
answered. Records are appended as they come, and are on the disk before the next batch begins. The last one about a
source and a prompt counts; an error, or an answer about an earlier version of the input, is asked again. A run that was
finished leaves one record for each query, in the order of the queries.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.errors import PruneSIDError, UsageError
from prunesid_cli.pipeline.answer_index import AnswerIndex, read_answer_index
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.text import plural

if TYPE_CHECKING:
    from prunesid_cli.pipeline.answer import Query


@dataclass(frozen=True)
class Progress:
    """How many queries there are, how many of them are answered, whether those are all that the file holds, and its
    first lines, and how many of its records are about other queries."""

    total: int
    answered: int
    in_order: bool
    others: int


class AnswerFile:
    def __init__(self, path: Path, by: str) -> None:
        self.path, self.by = path, by
        self.held: AnswerIndex = read_answer_index(path, by)
        self.end = self.held.end

    def progress(self, queries: Iterable[Query], forget: bool = False) -> Progress:
        """
        Raises:
            UsageError: the file holds what is not asked, which is not to be forgotten.
        """
        held, met = self.held, np.zeros(len(self.held.keys), bool)
        total, answered, in_order = 0, 0, len(met) == held.lines
        for query in queries:
            row = held.find(query)
            if row is not None:
                met[row] = True
            if held.is_answer(row, query):
                in_order = in_order and int(held.numbers[row]) == query.number
                answered += 1
            total += 1
        if not met.all() and not forget:
            raise self._not_asked(~met)
        return Progress(total, answered, in_order and answered == held.lines, int((~met).sum()))

    def _not_asked(self, rows: NDArray[np.bool_]) -> UsageError:
        with self.path.open("rb") as lines:
            record = _record(lines, self.held.starts[rows][0])
        about = f"to what is not asked here, as {record['prompt']!r} about {record['source']}"
        hint = "--forget lets go of them; or name another --out"
        return UsageError(f"{self.path} holds {plural(int(rows.sum()), 'answer')} {about}", hint)

    def missing(self, queries: Iterable[Query]) -> Iterator[Query]:
        held = self.held
        return (query for query in queries if not held.is_answer(held.find(query), query))

    def append(self, records: Sequence[dict[str, Any]]) -> None:
        """Add records, none to see whether that is possible.

        Raises:
            PruneSIDError: they could not be written; none of them are in the file then.
        """
        data = b"".join(json.dumps(record | {"by": self.by}).encode() + b"\n" for record in records)
        try:
            with self.path.open("ab", buffering=0) as file:
                file.truncate(self.end)  # what an earlier run could not write whole
                try:
                    _write(file.fileno(), data)
                except OSError:
                    file.truncate(self.end)
                    raise
        except OSError as error:
            raise self._unwritable(error) from error
        self.end += len(data)

    def arrange(self, queries: Iterable[Query]) -> None:
        """One record for each query, numbered, in order.

        Raises:
            PruneSIDError: it could not be written; the file is as it was.
        """
        self.held = read_answer_index(self.path, self.by)

        def write(beside: Path) -> None:
            with beside.open("w", encoding="utf-8") as file, self.path.open("rb") as lines:
                for query in queries:
                    row = self.held.find(query)
                    if row is not None:
                        record = _record(lines, self.held.starts[row]) | {"id": query.number}
                        file.write(json.dumps(record) + "\n")

        try:
            write_atomically(self.path, write)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> PruneSIDError:
        problem = f"cannot write to {self.path}: {error.strerror}"
        return PruneSIDError(problem, "free some space: the same command goes on from here")


def _record(lines: BinaryIO, start: np.uint64) -> dict[str, Any]:
    lines.seek(int(start))
    record: dict[str, Any] = json.loads(lines.readline())
    return record


def _write(handle: int, data: bytes) -> None:
    """All of it, onto the disk. A disk that fills up takes a part before it complains."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
    os.fsync(handle)


@contextmanager
def open_answers(path: Path, by: str) -> Iterator[AnswerFile]:
    """A file of answers that nobody else writes to; it need not be there.

    Raises:
        UsageError: it holds other things, or is no file that could be written.
        PruneSIDError: another run is writing to it.
    """
    from filelock import FileLock, Timeout

    path = path.resolve() if path.is_symlink() else path
    if not path.parent.is_dir():
        raise UsageError(f"no such folder: {path.parent}", f"make it: mkdir -p {path.parent}")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        raise UsageError(f"{path} is no file that can be written", "name another --out")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PruneSIDError(f"another run is writing to {path}", "wait for it, or name another --out") from error
    except OSError as error:
        raise UsageError(f"cannot write to {path.parent}: {error.strerror}", "name another --out") from error
    try:
        yield AnswerFile(path, by)
    finally:
        lock.release()
