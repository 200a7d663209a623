"""Records: questions with expected answers, read from JSON lines.

A line is an object with `media` (a path or a list of paths, relative to the file's folder) and `prompt`. It may have
`answer` (the expected answer, or a list of them), `kind` (results are also given by kind) and `metric` (a name of
`metrics.METRICS`; the default depends on the answers).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from prunesid_cli.errors import UsageError
from prunesid_cli.evaluate.metrics import METRICS, choose_metric
from prunesid_cli.inputs.text_file import check_name, check_text, parse_json, parse_lines, read_text_file
from prunesid_cli.text import did_you_mean

EXAMPLE_LINE = '{"media": "a.jpg", "prompt": "what colour is the car?", "answer": "red", "kind": "colour"}'
HINT = f"write {EXAMPLE_LINE}"
FIELDS = {"media", "prompt", "answer", "kind", "metric"}


@dataclass(frozen=True)
class Record:
    """One question.

    Attributes:
        line_number: Line of the file, from 1.
        media: Paths.
        media_names: The paths as the line gives them.
        prompt: The question.
        answers: Expected answers; empty if none is known.
        kind: Kind of question; may be empty.
        metric: A name of `metrics.METRICS`.
        key: Digest of everything that is asked, with media by name: equal only for equal questions.
    """

    line_number: int
    media: tuple[str, ...]
    media_names: tuple[str, ...]
    prompt: str
    answers: tuple[str, ...]
    kind: str
    metric: str
    key: str


def read_records(path: Path, default_metric: str | None = None) -> tuple[list[Record], list[UsageError]]:
    """Read all records of a file.

    Args:
        path: The file.
        default_metric: Metric of records that name none; None: by their answers.

    Returns:
        The records, and the errors of lines that are not records.

    Raises:
        UsageError: The file cannot be read, or has no record.
    """

    def parse(line: str, place: str, number: int) -> Record:
        return _parse_record(line, place, number, path.parent, default_metric)

    return parse_lines(read_text_file(path, EXAMPLE_LINE), str(path), parse, "records", EXAMPLE_LINE)


def _parse_record(line: str, location: str, number: int, folder: Path, default_metric: str | None) -> Record:
    fields = parse_json(line, location, EXAMPLE_LINE)
    if not isinstance(fields, dict):
        raise UsageError(f"{location} is not an object", HINT)
    if unknown := sorted(fields.keys() - FIELDS):
        raise UsageError(f"{location} has an unknown field '{unknown[0]}'", f"known: {', '.join(sorted(FIELDS))}")
    media, answers = _read_texts(fields, "media", location), tuple(_read_texts(fields, "answer", location))
    prompt, kind = fields.get("prompt"), fields.get("kind", "")
    if not media or not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"{location} needs media and a prompt", HINT)
    if not isinstance(kind, str):
        raise UsageError(f"{location}: kind is not text", HINT)
    for what, text in (("the prompt", prompt), ("the kind", kind), *(("an answer", answer) for answer in answers)):
        check_text(text, location, what)
    for name in media:
        check_name(name, location)
    metric = fields.get("metric", default_metric) or choose_metric(answers)
    if not isinstance(metric, str) or metric not in METRICS:
        hint = did_you_mean(str(metric), METRICS, f"one of: {', '.join(METRICS)}")
        raise UsageError(f"{location}: no metric called '{metric}'", hint)
    _check_answers(fields, answers, location)
    METRICS[metric].check(answers, location)
    question = json.dumps([media, prompt, answers, kind, metric])
    return Record(
        line_number=number,
        media=tuple(str(folder / name) for name in media),
        media_names=tuple(media),
        prompt=prompt,
        answers=answers,
        kind=kind,
        metric=metric,
        key=hashlib.blake2b(question.encode(), digest_size=16).hexdigest(),
    )


def _check_answers(fields: dict[str, Any], answers: tuple[str, ...], location: str) -> None:
    if not all(answer.strip() for answer in answers):
        raise UsageError(f"{location} expects an empty answer", "leave out the answer where none is known")
    if answers:
        return
    for name, what in (("answer", "an empty list"), ("metric", "a metric")):
        if name in fields:
            raise UsageError(f"{location} has {what}, but no answer", "leave out both where none is known")


def _read_texts(fields: dict[str, Any], name: str, location: str) -> list[str]:
    """The values of a field that is a text, a number, or a list of them."""
    value = fields.get(name, [])
    texts = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, bool) or not isinstance(item, str | int | float):
            raise UsageError(f"{location}: {name} is neither a text nor a list of texts", HINT)
        if isinstance(item, float) and not isfinite(item):  # Python reads NaN, which is not JSON
            raise UsageError(f"{location}: {name} is not a finite number", HINT)
        texts.append(str(item))
    return texts
