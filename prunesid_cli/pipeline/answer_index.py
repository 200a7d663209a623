"""An index of a file of answers: hashes and line positions, 32 bytes per record, so that millions of answers fit."""

from __future__ import annotations

import json
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prunesid_cli.errors import UsageError
from prunesid_cli.runtime.line_file import OTHER_FILE_HINT, LineFile

if TYPE_CHECKING:
    from prunesid_cli.pipeline.query import Query

LINE_PATTERN = rb'\{"id": (?:"(?:[^"\\]|\\.)*"|[-+.\w]+), "source": .*'
"""Regular expression of a line of such a file."""


@dataclass(frozen=True)
class AnswerIndex:
    """The last record about each source and prompt, sorted by `keys`.

    Attributes:
        keys: Hashes of source, prompt and the user's own fields.
        digests: Hashes of the input's digest and of how the frames of a clip were chosen; 0 for an error.
        prompts: Hashes of the prompt alone.
        columns: Hashes of what the item gave to the answer; 0 for nothing.
        offsets: Byte at which the record's line begins.
        numbers: Number of that line, from 0.
        num_lines: Complete lines in the file.
    """

    keys: NDArray[np.uint64]
    digests: NDArray[np.uint64]
    prompts: NDArray[np.uint64]
    columns: NDArray[np.uint64]
    offsets: NDArray[np.uint64]
    numbers: NDArray[np.intp]
    num_lines: int

    def find(self, query: Query) -> int | None:
        """The row of the record about a query, whether it is an answer or an error."""
        key = _query_hash(query.item.source, query.prompt, query.fields)
        row = int(np.searchsorted(self.keys, np.uint64(key)))
        return row if row < len(self.keys) and int(self.keys[row]) == key else None

    def is_answer(self, row: int | None, query: Query) -> bool:
        """Whether a record is an answer about the input as the cache has it now."""
        return row is not None and int(self.digests[row]) == _hash(query.item.digest, query.item.sampling)

    def has_columns(self, row: int, query: Query) -> bool:
        """Whether a record has the columns that the item has now."""
        return int(self.columns[row]) == _columns_hash(query.columns)

    def is_about(self, prompts: Collection[str]) -> NDArray[np.bool_]:
        """Which records answer one of some prompts, about any item."""
        return np.isin(self.prompts, np.array([_hash(prompt) for prompt in prompts], np.uint64))


def read_answer_index(file: LineFile, answered_by: str) -> AnswerIndex:
    """Indexes a file. An incomplete last line is ignored; a missing file is empty.

    Args:
        file: The file.
        answered_by: What the answers must have been made by.

    Raises:
        UsageError: A line is not an answer of ours, or was made by something else.
    """
    keys, digests, prompts, columns, offsets, end = (*(array("Q") for _ in range(5)), 0)
    for number, line in enumerate(file.read(), 1):
        hashes = _hash_record(line, file, number, answered_by)
        for column, value in zip((keys, digests, prompts, columns, offsets), (*hashes, end), strict=True):
            column.append(value)
        end += len(line)
    table = [np.frombuffer(column, np.uint64) for column in (keys, digests, prompts, columns, offsets)]
    order = np.argsort(table[0], kind="stable")
    is_last = np.append(np.diff(table[0][order]) != 0, True)[: len(order)]
    last = order[is_last]
    return AnswerIndex(
        keys=table[0][last],
        digests=table[1][last],
        prompts=table[2][last],
        columns=table[3][last],
        offsets=table[4][last],
        numbers=last,
        num_lines=len(order),
    )


def _hash_record(line: bytes, file: LineFile, number: int, answered_by: str) -> tuple[int, int, int, int]:
    """Key, digest, prompt and columns of a record, as `AnswerIndex` has them."""
    try:
        record = json.loads(line)
        fields = {name: record[name] for name in record.get("fields", ())}
        key = _query_hash(record["source"], record["prompt"], fields)
        digest = _hash(record["digest"], record.get("sampling", ""))
        prompt = _hash(record["prompt"])
        columns = _columns_hash({name: record[name] for name in record.get("columns", ())})
        by, is_error = str(record["by"]), "answer" not in record
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise file.not_ours(number) from error
    if by != answered_by:
        problem = f"{file.path}, line {number} was answered by {by}, not by {answered_by}"
        raise UsageError(problem, OTHER_FILE_HINT)
    return key, 0 if is_error else digest, prompt, columns


def _columns_hash(columns: Mapping[str, Any]) -> int:
    return _hash(json.dumps(columns, sort_keys=True)) if columns else 0


def _query_hash(source: str, prompt: str, fields: Mapping[str, Any]) -> int:
    """Stands for a query in a file of answers."""
    return _hash(source, prompt, *([json.dumps(fields, sort_keys=True)] if fields else []))


def _hash(*parts: str) -> int:
    """64 bits, never 0."""
    text = "\0".join(parts).encode("utf-8", "surrogatepass")  # file names may hold any byte
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big") or 1
