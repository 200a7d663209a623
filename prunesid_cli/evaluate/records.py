"""Questions with the answers that are right, as JSON lines.

A line is an object with `media` (a path or a list of paths, from the file's own folder on), `prompt`, and, where it is
known, `answer` (a string or a list of them) and `kind` (by which results are told apart). `metric` says how the answer
is scored (metrics.py); by default that depends on the answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunesid_cli.errors import UsageError
from prunesid_cli.evaluate.metrics import METRICS, fitting

EXAMPLE = '{"media": "a.jpg", "prompt": "what colour is the car?", "answer": "red", "kind": "colour"}'
NONE = {"answer": "an empty list", "metric": "a metric"}
FIELDS = {"media", "prompt", "answer", "kind", "metric"}


@dataclass(frozen=True)
class Record:
    """One question.

    number   of its line
    media    paths; `named`: as the line names them
    answers  empty where none is known
    key      what is asked, in short: the same only where all of it is, media by the names that the line gives them
    """

    number: int
    media: tuple[str, ...]
    named: tuple[str, ...]
    prompt: str
    answers: tuple[str, ...]
    kind: str
    metric: str
    key: str


def read_records(path: Path, metric: str | None = None) -> list[Record]:
    """All lines of a file. `metric`: of the records that name none.

    Raises:
        UsageError: it cannot be read, or a line is no record; found out before any model is loaded.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", "name a file of questions, JSON a line") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text", hint=f"a text file of lines such as {EXAMPLE}") from error
    records = [_record(line, path, number, metric) for number, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise UsageError(f"{path} holds no records", hint=f"lines such as {EXAMPLE}")
    return records


def _record(line: str, path: Path, number: int, metric: str | None) -> Record:
    where = f"{path}, line {number}"
    try:
        said = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{where} is no JSON: {error}", hint=EXAMPLE) from error
    if not isinstance(said, dict):
        raise UsageError(f"{where} is no object", hint=EXAMPLE)
    if unknown := sorted(said.keys() - FIELDS):
        raise UsageError(f"{where} has an unknown field {unknown[0]!r}", hint=f"known: {', '.join(sorted(FIELDS))}")
    media, answers = list(_texts(said, "media", where)), tuple(_texts(said, "answer", where))
    prompt, kind = said.get("prompt"), said.get("kind", "")
    if not media or not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{where} needs media and a prompt", hint=EXAMPLE)
    if not isinstance(kind, str):
        raise UsageError(f"{where}: kind is no text", hint=EXAMPLE)
    named = said.get("metric", metric) or fitting(answers)
    if named not in METRICS:
        raise UsageError(f"{where}: no metric called {named!r}", hint=f"one of: {', '.join(METRICS)}")
    if not all(one.strip() for one in answers):
        raise UsageError(f"{where} expects an empty answer", "leave out the answer where none is known")
    if not answers and (given := said.keys() & {"answer", "metric"}):
        raise UsageError(f"{where} has {NONE[min(given)]}, but no answer", "leave out both where none is known")
    METRICS[named].check(answers, where)
    asked = json.dumps([media, prompt, answers, kind, named])
    key = hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()
    paths = tuple(str(path.parent / one) for one in media)
    return Record(number, paths, tuple(media), prompt, answers, kind, named, key)


def _texts(said: dict[str, Any], name: str, where: str) -> Iterator[str]:
    found = said.get(name, [])
    for one in found if isinstance(found, list) else [found]:
        if isinstance(one, bool) or not isinstance(one, str | int | float):
            raise UsageError(f"{where}: {name} is neither a text nor a list of texts", hint=EXAMPLE)
        yield str(one)
