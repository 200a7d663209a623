"""Lists of paths on stdin: both separators, one path at a time."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.path_list import read_list

LISTS = [
    (b"a.jpg\nb c.jpg\n", False, ["a.jpg", "b c.jpg"]),
    (b"a.jpg\r\n\r\n\nlast", False, ["a.jpg", "last"]),
    (b"a\nb.jpg\0\0c.jpg\0", True, ["a\nb.jpg", "c.jpg"]),
    (b"c.jpg\0no end", True, ["c.jpg", "no end"]),
    ("图.jpg\n".encode() + b"\xff.jpg", False, ["图.jpg", os.fsdecode(b"\xff.jpg")]),
    (b"x" * 200_000 + b"\0y", True, ["x" * 200_000, "y"]),
    (b"\xef\xbb\xbfa.png\r\nb.png \t\r\n \r\n", False, ["a.png", "b.png"]),
    (b"\xef\xbb\xbfa.png\0b.png \0", True, ["a.png", "b.png "]),
    (b"a.png\n\xef\xbb\xbfb.png", False, ["a.png", "\ufeffb.png"]),
    (b" a.png", False, [" a.png"]),
    ("a.png\xa0\nb.png\u3000\r\n".encode(), False, ["a.png", "b.png"]),
    (b"a.png\nb\0.png\nc.png\nd\0", False, ["a.png", "b\0.png", "c.png", "d\0"]),
    (b"1\0folder\0", True, ["1", "folder"]),
    (b"", False, []),
    (b"", True, []),
]


@pytest.mark.parametrize(("data", "null_separated", "expected"), LISTS)
def test_lists(data: bytes, null_separated: bool, expected: list[str]) -> None:
    assert list(read_list(io.BytesIO(data), null_separated)) == expected


@pytest.mark.parametrize("name", ["a.png ", "a.png\r", "\ufeffa.png", " ", "a.png\xa0"])
def test_a_file_with_the_very_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert list(read_list(io.BytesIO(f"{name}\n".encode()))) == [name]
    assert list(read_list(io.BytesIO(f"{name}\r\n".encode()))) == [name]


@pytest.mark.parametrize(
    "text", ["a.png\r\nb.png\r\n", "photo.png\n", "图.png\n", "éа.png\n", "图片\na.png\n", "photo.png"]
)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf_16_is_named(text: str, encoding: str) -> None:
    data = text.encode(encoding)
    for stream in (io.BytesIO(data), OneByteAtATime(data)):
        with pytest.raises(UsageError, match="the list on stdin is UTF-16, not UTF-8"):
            list(read_list(cast(BinaryIO, stream)))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named_before_the_first_name_is_given(encoding: str) -> None:
    for text, null_separated in (("a.png\0b.png\0", True), ("图片\0a.png\0", True), ("图片\na.png\n", False)):
        with pytest.raises(UsageError, match=f"the list on stdin is {encoding[:6].upper()}, not UTF-8"):
            next(read_list(io.BytesIO(text.encode(encoding)), null_separated))


def test_names_of_one_byte_are_no_utf_16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert list(read_list(io.BytesIO(b"1\x002\x003\0"), True)) == ["1", "2", "3"]


def test_a_list_of_names_with_newlines_that_is_separated_by_nul() -> None:
    with pytest.raises(UsageError, match="is separated by NUL"):
        next(read_list(io.BytesIO(b"two\nlines.png\0b.png\0")))


class OneByteAtATime(io.RawIOBase):
    """A pipe whose writer sends single bytes."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def read(self, size: int = -1) -> bytes:
        byte, self.rest = self.rest[:1], self.rest[1:]
        return byte


@pytest.mark.parametrize("many", [2, 20_000])
@pytest.mark.parametrize(("end", "null_separated", "hint"), [(b"\0", False, "add -0"), (b"\n", True, "leave out -0")])
def test_lists_separated_the_other_way(end: bytes, null_separated: bool, hint: str, many: int) -> None:
    stream = io.BytesIO(end.join([b"photos/a.jpg"] * many) + end)
    with pytest.raises(UsageError) as caught:
        list(read_list(stream, null_separated))
    assert caught.value.hint == hint
    assert stream.tell() <= 3 * 2**16


def test_paths_may_hold_newlines(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines.png"
    path.touch()
    assert list(read_list(io.BytesIO(str(path).encode()), True)) == [str(path)]


@pytest.mark.parametrize(("end", "null_separated"), [(b"\n", False), (b"\0", True)])
def test_list_from_a_pipe_streams(end: bytes, null_separated: bool) -> None:
    """A path is given while the pipe is still open."""
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as pipe:
        pipe.write(b"a.jpg" + end)
        paths = read_list(cast(BinaryIO, stream), null_separated)
        assert next(paths) == "a.jpg"
        pipe.write(b"b.jpg" + end)
        assert next(paths) == "b.jpg"
