"""Files of lines that a run continues: only the beginning of a line of ours is ever removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunesid_cli.runtime.line_file import open_lines

PATTERN = rb'\{"line": \d+, "media": \[.*'
LINE = json.dumps({"line": 1, "media": ["é\n.png"], "score": -1.5e-07, "known": True, "by": "x"}).encode() + b"\n"


@pytest.mark.parametrize("end", range(len(LINE)))
def test_a_line_that_was_cut_anywhere_is_completed(end: int, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(LINE + LINE[:end])
    with open_lines(path, PATTERN) as file:
        num_lines = len(list(file.read()))
        file.append([])  # only checks that the file can be written
        file.append([LINE] * (3 - num_lines))
    assert path.read_bytes() == LINE * 3


@pytest.mark.parametrize(
    "text",
    [
        b'{"line": 1, "media": ["a.png"], "answer": "b"},',
        b'{"line": 1, "media": ["a.png"], "prompt": "p"} {"line": 2, "media": []}',
        b'{"line": 1, "media": ["a.png"], "context": "mine"}',
        b'{"line": 1, "media": ["a.png"]}\r{"line": 2, "media": ["b.png"]}\r',
        b'{"line": 1, "media": [}',
        b'{"line": 1, "media": [' + b"[" * 100_000,
        b'{"line": 1, "media": [nothing',
    ],
)
def test_other_text_is_given_to_the_reader_and_never_removed(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(text)
    with open_lines(path, PATTERN) as file:
        assert list(file.read()) == [text]
        file.append([])
    assert path.read_bytes() == text
