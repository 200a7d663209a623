"""A file of answers, one JSON object a line, which an interrupted run continues.

A record has the query (`source`, `digest` of the input, `sampling` of a clip, `prompt`) and `by`: the model and the
settings that answered it. Records are appended in the order of arrival, and synced to the disk before the next batch
begins. The last record about a source and a prompt counts. A query is asked again if its record is an error, or is
about an earlier version of the input. A finished run leaves one record for each query, in the order of the queries.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from prunesid_cli.errors import CacheError, UsageError
from prunesid_cli.pipeline.answer_index import LINE_PATTERN, AnswerIndex, read_answer_index
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.runtime.line_file import LineFile, open_lines
from prunesid_cli.text import plural

if TYPE_CHECKING:
    from prunesid_cli.pipeline.query import Query, Reply
    from prunesid_cli.tokencache import Run
    from prunesid_cli.types import Generation


def describe_answerer(run: Run, generation: Generation, allow_special_tokens: bool = False, system: str = "") -> str:
    """All that an answer depends on beside the prompt and the input. Equal for two runs with the same answers."""
    stored = f" stored as {run.store}" if run.store != "model" else ""
    spread = ", dynamic" if run.dynamic else ", even" if run.even else ""
    sampled = f"temperature {generation.temperature:g}, seed {generation.seed}"
    decoding = sampled if generation.temperature > 0 else "greedy"
    if generation.choices:
        decoding = f"one of {', '.join(generation.choices)}"
    padded = ", padded" if run.fit == "pad" else ""
    decoding += f", by {generation.schema}" if generation.schema else ""
    decoding += ", special tokens" if allow_special_tokens else ""
    decoding += f", told {system!r}" if system else ""
    return (
        f"{run.model} at {run.revision}, {run.method} {run.keep}{spread}{padded}, {run.dtype}{stored}; "
        f"{generation.max_new_tokens} new tokens, {decoding}"
    )


def reply_record(reply: Reply) -> dict[str, Any]:
    """A reply as `answer` prints it."""
    query = reply.query
    record: dict[str, Any] = {"id": query.number, "source": query.item.source, "prompt": query.prompt}
    record |= {**query.columns, **query.fields}
    if reply.answer is None:
        error = reply.error or CacheError("no answer")
        return record | {"error": error.problem, "hint": error.hint}
    counts = {"tokens": query.item.layout.total, "kept": query.item.kept}
    return record | reply.answer.record | counts | {"ms": round(reply.ms, 1)}


@dataclass(frozen=True)
class Progress:
    """How far a file of answers is.

    Attributes:
        num_queries: Queries of the run.
        num_answered: Those that have an answer in the file.
        is_sorted: Whether the file begins with these answers, in order and with the columns of their items, and has
            only `num_staying` others.
        num_others: Records about other queries that are removed.
        num_staying: Records about other items, with a prompt of the run, that stay at the end of the file.
    """

    num_queries: int
    num_answered: int
    is_sorted: bool
    num_others: int
    num_staying: int = 0


class AnswerFile:
    """A file of answers that is locked for this run; see `open_answers`."""

    def __init__(self, file: LineFile, answered_by: str) -> None:
        self.file, self.answered_by = file, answered_by
        self.index: AnswerIndex = read_answer_index(file, answered_by)
        self.staying = np.zeros(0, np.uint64)

    def progress(self, queries: Iterable[Query], forget: bool = False) -> Progress:
        """Compares the file with the queries of a run.

        Args:
            queries: All queries, in order.
            forget: Whether records about other queries may be dropped.

        Raises:
            UsageError: The file has records about other queries, and `forget` is not set.
        """
        index, is_asked = self.index, np.zeros(len(self.index.keys), bool)
        num_queries, num_answered, is_sorted = 0, 0, len(is_asked) == index.num_lines
        prompts = set[str]()
        for query in queries:
            row = index.find(query)
            prompts.add(query.prompt)
            if row is not None:
                is_asked[row] = True
            if row is not None and index.is_answer(row, query):
                is_in_place = int(index.numbers[row]) == query.number and index.has_columns(row, query)
                is_sorted = is_sorted and is_in_place
                num_answered += 1
            num_queries += 1
        # A file without any answer of this run is that of another cache.
        is_staying = ~is_asked & index.is_about(prompts) & (is_asked.any() and not forget)
        self.staying = index.offsets[is_staying]
        is_other = ~is_asked & ~is_staying
        num_others = int(is_other.sum())
        if num_others and not forget:
            with self.file.path.open("rb") as lines:
                record = _read_record(lines, index.offsets[is_other][0])
            example = f"{record['prompt']!r} about {record['source']}"
            problem = f"{self.file.path} holds {plural(num_others, 'answer')} to prompts that are not asked here"
            raise UsageError(f"{problem}, as {example}", "--forget removes them; or name another --out")
        num_staying = len(self.staying)
        is_sorted = is_sorted and num_answered + num_staying == index.num_lines
        return Progress(num_queries, num_answered, is_sorted, num_others, num_staying)

    def unanswered(self, queries: Iterable[Query]) -> Iterator[Query]:
        """The queries that have no answer in the file."""
        return (query for query in queries if not self.has(query))

    def has(self, query: Query) -> bool:
        """Whether the file has an answer to a query."""
        return self.index.is_answer(self.index.find(query), query)

    def append(self, replies: Sequence[Reply]) -> None:
        """Adds records and syncs them to the disk. Without any, only checks that the file can be written.

        Raises:
            PruneSIDError: They could not be written; the file has none of them.
        """
        lines = []
        for reply in replies:
            item = reply.query.item
            # Tells the input, and the frames of a clip, from earlier ones of the same name.
            version: dict[str, Any] = {"digest": item.digest} | ({"sampling": item.sampling} if item.sampling else {})
            version |= {"fields": list(reply.query.fields)} if reply.query.fields else {}
            version |= {"columns": list(reply.query.columns)} if reply.query.columns else {}
            lines.append(json.dumps(reply_record(reply) | version | {"by": self.answered_by}).encode() + b"\n")
        self.file.append(lines)

    def sort(self, queries: Iterable[Query]) -> None:
        """Rewrites the file: one record for each query, numbered, in order; then those that stay.

        A stream has them in order already.

        Raises:
            PruneSIDError: It could not be written; the file is unchanged.
        """
        if self.file.stream is not None:
            return
        self.index = read_answer_index(self.file, self.answered_by)

        def write(file: BinaryIO) -> None:
            with self.file.path.open("rb") as lines:
                for query in queries:
                    row = self.index.find(query)
                    if row is not None:
                        record = _with_columns(_read_record(lines, self.index.offsets[row]), query)
                        file.write(json.dumps(record).encode() + b"\n")
                for offset in self.staying:
                    file.write(json.dumps(_read_record(lines, offset)).encode() + b"\n")

        try:
            write_atomically(self.file.path, write)
        except OSError as error:
            raise self.file.write_error(error) from error


def _read_record(lines: BinaryIO, offset: np.uint64) -> dict[str, Any]:
    lines.seek(int(offset))
    record: dict[str, Any] = json.loads(lines.readline())
    return record


def _with_columns(record: dict[str, Any], query: Query) -> dict[str, Any]:
    """A record with its number in the run, and with the columns that its item has now."""
    own = {**query.columns, **query.fields}
    outdated = {*record.get("columns", ()), *own, "id", "source", "prompt", "columns"}
    rest = {name: value for name, value in record.items() if name not in outdated}
    begin = {"id": query.number, "source": query.item.source, "prompt": query.prompt}
    columns = {"columns": list(query.columns)} if query.columns else {}
    return begin | own | rest | columns


@contextmanager
def open_answers(path: Path, answered_by: str) -> Iterator[AnswerFile]:
    """Opens a file of answers for writing, and locks it. It need not exist.

    Args:
        path: The file.
        answered_by: What answers are made by; see `describe_answerer`.

    Raises:
        UsageError: The file has other contents, or cannot be written.
        PruneSIDError: Another run writes to it.
    """
    with open_lines(path, LINE_PATTERN) as file:
        yield AnswerFile(file, answered_by)
