"""Every image once, in the same order, and nothing that is passed over goes uncounted."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from prunesid_cli.errors import MediaError, UsageError
from prunesid_cli.inputs.image import load_image
from prunesid_cli.inputs.listing import (
    HIDDEN,
    IMAGE_EXTENSIONS,
    LINK,
    OTHER,
    REPEAT,
    ListedFile,
    Listing,
)
from prunesid_cli.inputs.path_list import read_list
from tests import hostile


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files are empty: nothing here opens them."""
    names = [
        "b.jpg",
        "a.PNG",
        "notes.txt",
        "noext",
        ".hidden.jpg",
        "sub/c.webp",
        "sub/deep/d.gif",
        ".git/e.jpg",
    ]
    for name in [*names, "dir.jpg/f.jpg", "z/.x.jpg"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources(*paths: str) -> list[str]:
    found = list(Listing(paths))
    assert not [item for item in found if item.error]
    return [item.source for item in found]


def only_error(*paths: str) -> MediaError:
    (found,) = Listing(paths)
    assert found.error is not None
    return found.error


def test_folder_is_walked_in_order_and_counts_what_it_passes_over(tree: Path) -> None:
    listing = Listing([str(tree)])
    names = [os.path.relpath(item.source, tree) for item in listing]
    assert names == ["a.PNG", "b.jpg", "dir.jpg/f.jpg", "sub/c.webp", "sub/deep/d.gif"]
    assert listing.skipped == {OTHER: 2, HIDDEN: 3}


def test_sources_are_as_the_user_named_them(tree: Path) -> None:
    assert sources("sub") == ["sub/c.webp", "sub/deep/d.gif"]
    assert sources("./sub/") == ["./sub/c.webp", "./sub/deep/d.gif"]
    assert sources("b.jpg", "a.PNG") == ["b.jpg", "a.PNG"]


@pytest.mark.parametrize("name", ["notes.txt", "noext", ".hidden.jpg", ".git/e.jpg"])
def test_named_file_is_tried_whatever_it_is_called(tree: Path, name: str) -> None:
    assert sources(name) == [name]


def test_named_hidden_folder_is_walked(tree: Path) -> None:
    assert sources(".git") == [".git/e.jpg"]


GLOBS = [
    ("*.jpg", ["b.jpg", "dir.jpg/f.jpg"]),
    ("?.*", ["a.PNG", "b.jpg"]),
    ("[ab].*", ["a.PNG", "b.jpg"]),
    ("s*/*.webp", ["sub/c.webp"]),
    ("**/*.gif", ["sub/deep/d.gif"]),
    ("**/d.gif", ["sub/deep/d.gif"]),
    ("sub/**", ["sub/c.webp", "sub/deep/d.gif"]),
    ("sub/**/**/*.*", ["sub/c.webp", "sub/deep/d.gif"]),
    (".git/*", [".git/e.jpg"]),
    (".h*", [".hidden.jpg"]),
    ("*.txt", ["notes.txt"]),
]


@pytest.mark.parametrize(("pattern", "expected"), GLOBS)
def test_globs(tree: Path, pattern: str, expected: list[str]) -> None:
    assert sources(pattern) == expected


def test_absolute_glob(tree: Path) -> None:
    assert sources(f"{tree}/sub/*.webp") == [f"{tree}/sub/c.webp"]


def test_file_named_like_a_glob_is_a_file(tree: Path) -> None:
    for name in ("[1].jpg", "what?.jpg"):
        (tree / name).touch()
        assert sources(name) == [name]


def test_missing_paths_are_records(tree: Path) -> None:
    found = list(Listing(["missing.jpg", "b.jpg", "b.jpg/x", "*.nothing", "", "nul\0"]))
    assert [item.error is None for item in found] == [False, True, False, False, False, False]
    problems = [item.error.problem for item in found if item.error]
    assert problems[0] == "missing.jpg: no such file or folder"
    assert problems[2] == "*.nothing: no file matches"
    assert problems[3] == "'': no such file or folder"
    assert all(item.error.hint for item in found if item.error)


def test_folder_too_deep_to_scan_is_a_record(tmp_path: Path) -> None:
    hostile.deep_tree(tmp_path)
    (tmp_path / "z.jpg").touch()
    deep, last = Listing([str(tmp_path)])
    assert deep.error and "too long" in deep.error.problem
    assert last == ListedFile(str(tmp_path / "z.jpg"))


@pytest.mark.parametrize("path", ["shut", "*", "shut/*", "**/x.jpg"])
def test_folder_that_cannot_be_scanned_is_a_record(tree: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Root may scan everything, so the system's answer is put in its mouth; the folder's mode does it for others."""
    (tree / "shut").mkdir(0o311)
    scan = os.scandir

    def scandir(folder: str) -> Iterator[os.DirEntry[str]]:
        if os.path.basename(folder) == "shut":
            raise PermissionError(13, "Permission denied", folder)
        return cast(Iterator[os.DirEntry[str]], scan(folder))

    monkeypatch.setattr(os, "scandir", scandir)
    errors = [item.error.problem for item in Listing([path]) if item.error]
    assert errors[:1] == ["shut: no permission to read it"]


def test_links_never_loop(tree: Path) -> None:
    (tree / "sub/up").symlink_to(tree)
    (tree / "sub/deep/up").symlink_to(tree / "sub")
    (tree / "sub/self.jpg").symlink_to("self.jpg")
    (tree / "sub/gone.jpg").symlink_to("nowhere.jpg")
    listing = Listing(["sub"])
    assert [item.source for item in listing] == [
        "sub/c.webp",
        "sub/deep/d.gif",
        "sub/gone.jpg",
        "sub/self.jpg",
    ]
    assert listing.skipped[LINK] == 2
    assert sources("**/*.webp") == ["sub/c.webp"]
    for name in ("sub/self.jpg", "sub/gone.jpg"):
        with pytest.raises(MediaError):
            load_image(name)
        assert only_error(name).problem.startswith(name)
    assert only_error("sub/gone.jpg").problem == "sub/gone.jpg: a link that leads nowhere"


def test_named_link_to_a_folder_is_followed(tree: Path) -> None:
    (tree / "link").symlink_to("sub")
    assert sources("link") == ["link/c.webp", "link/deep/d.gif"]


REPEATS: list[tuple[list[str], list[str], int]] = [
    (["b.jpg", "b.jpg"], ["b.jpg"], 1),
    (["b.jpg", "./sub/../b.jpg"], ["b.jpg"], 1),
    (["sub/c.webp", "sub"], ["sub/c.webp", "sub/deep/d.gif"], 1),
    (["sub", "sub"], ["sub/c.webp", "sub/deep/d.gif"], 1),
    (["sub", "sub/deep"], ["sub/c.webp", "sub/deep/d.gif"], 1),
    (["b.jpg", "*.jpg"], ["b.jpg", "dir.jpg/f.jpg"], 1),
]


@pytest.mark.parametrize(("paths", "expected", "repeated"), REPEATS)
def test_the_same_file_is_given_once(tree: Path, paths: list[str], expected: list[str], repeated: int) -> None:
    listing = Listing(paths)
    assert [item.source for item in listing] == expected
    assert listing.skipped[REPEAT] == repeated


def test_linked_file_is_given_once(tree: Path) -> None:
    """By its own name where it comes anyway, else by the link's."""
    (tree / "sub/again.webp").symlink_to("c.webp")
    (tree / "sub/other.jpg").symlink_to("../b.jpg")
    assert sources("sub") == ["sub/c.webp", "sub/deep/d.gif", "sub/other.jpg"]
    assert sources("sub", "b.jpg", ".") == [
        *("sub/c.webp", "sub/deep/d.gif", "sub/other.jpg"),
        *("./a.PNG", "./dir.jpg/f.jpg"),
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_is_listed_without_opening_it(tree: Path) -> None:
    os.mkfifo(tree / "sub/pipe.jpg")
    assert "sub/pipe.jpg" in sources("sub")
    assert sources("sub/pipe.jpg") == ["sub/pipe.jpg"]


def test_undecodable_names_pass_through_json(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    try:
        Path(os.fsdecode(raw)).write_bytes(hostile.encoded(hostile.landmark(), "PNG"))
    except OSError:
        pytest.skip("this file system takes only names that are text")
    (found,) = Listing([str(tmp_path)])
    returned = json.loads(json.dumps(found.source))
    assert os.fsencode(returned) == raw
    assert load_image(returned).size == (96, 64)


def test_listing_streams(tree: Path) -> None:
    """The first image is given before the second path is even asked for."""

    def paths() -> Iterator[str]:
        yield "b.jpg"
        raise AssertionError("read ahead")

    assert list(islice(Listing(paths()), 1)) == [ListedFile("b.jpg")]


def test_listing_is_the_same_every_time(tree: Path) -> None:
    def as_given() -> list[ListedFile]:
        return list(Listing([".", "sub", "**"]))

    assert as_given() == as_given()


def test_extensions_are_lower_case_with_a_dot() -> None:
    assert all(extension.startswith(".") and extension == extension.lower() for extension in IMAGE_EXTENSIONS)
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".heic", ".avif"} <= IMAGE_EXTENSIONS


LISTS = [
    (b"a.jpg\nb c.jpg\n", False, ["a.jpg", "b c.jpg"]),
    (b"a.jpg\r\n\r\n\nlast", False, ["a.jpg", "last"]),
    (b"a\nb.jpg\0\0c.jpg\0", True, ["a\nb.jpg", "c.jpg"]),
    (b"c.jpg\0no end", True, ["c.jpg", "no end"]),
    ("图.jpg\n".encode() + b"\xff.jpg", False, ["图.jpg", os.fsdecode(b"\xff.jpg")]),
    (b"x" * 200_000 + b"\0y", True, ["x" * 200_000, "y"]),
    (b"", False, []),
    (b"", True, []),
]


@pytest.mark.parametrize(("data", "null_separated", "expected"), LISTS)
def test_lists(data: bytes, null_separated: bool, expected: list[str]) -> None:
    assert list(read_list(io.BytesIO(data), null_separated)) == expected


@pytest.mark.parametrize("many", [2, 20_000])
@pytest.mark.parametrize(("end", "null_separated", "hint"), [(b"\0", False, "add -0"), (b"\n", True, "leave out -0")])
def test_lists_separated_the_other_way(end: bytes, null_separated: bool, hint: str, many: int) -> None:
    stream = io.BytesIO(end.join([b"photos/a.jpg"] * many) + end)
    with pytest.raises(UsageError) as caught:
        list(read_list(stream, null_separated))
    assert caught.value.hint == hint
    assert stream.tell() <= 3 * 2**16


def test_names_may_hold_newlines(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines.png"
    path.touch()
    assert list(read_list(io.BytesIO(str(path).encode()), True)) == [str(path)]


@pytest.mark.parametrize(("end", "null_separated"), [(b"\n", False), (b"\0", True)])
def test_list_from_a_pipe_streams(end: bytes, null_separated: bool) -> None:
    """A name is given while the pipe is still open."""
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as pipe:
        pipe.write(b"a.jpg" + end)
        names = read_list(cast(BinaryIO, stream), null_separated)
        assert next(names) == "a.jpg"
        pipe.write(b"b.jpg" + end)
        assert next(names) == "b.jpg"


@pytest.mark.parametrize("make", [list, tuple, iter])
def test_any_iterable_of_paths(tree: Path, make: Callable[[list[str]], Iterator[str]]) -> None:
    assert [item.source for item in Listing(make(["b.jpg"]))] == ["b.jpg"]
