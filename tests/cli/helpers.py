"""Helpers of the tests of the command line: JSON Lines files, and the files of a cache."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import CommandResult


def write_jsonl(path: Path, *records: dict) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def stored_answers(path: Path) -> list[dict]:
    """The complete records of an answer file, without the time they took and the fields that stdout does not show."""
    records = [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [{key: v for key, v in record.items() if key not in ("ms", "digest", "by")} for record in records]


def printed_answers(result: CommandResult) -> list[dict]:
    """The records that `answer` printed, without the time they took."""
    return [{key: v for key, v in record.items() if key != "ms"} for record in result.records]


def cache_files(cache: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in cache.iterdir() if path.suffix == ".safetensors"}
