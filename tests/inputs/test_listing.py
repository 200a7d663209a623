"""Each image is listed once, in the same order every time, and everything that is skipped is counted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import cast

import pytest

from prunesid_cli.errors import MediaError
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
from tests import hostile
from tests.films import film


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
    files = list(Listing(paths))
    assert not [file for file in files if file.error]
    return [file.source for file in files]


def only_error(*paths: str) -> MediaError:
    (file,) = Listing(paths)
    assert file.error is not None
    return file.error


def test_a_folder_is_walked_in_order_and_skipped_files_are_counted(tree: Path) -> None:
    listing = Listing([str(tree)])
    names = [os.path.relpath(file.source, tree) for file in listing]
    assert names == ["a.PNG", "b.jpg", "dir.jpg/f.jpg", "sub/c.webp", "sub/deep/d.gif"]
    assert listing.skipped == {OTHER: 2, HIDDEN: 3}


def test_sources_are_as_the_user_named_them(tree: Path) -> None:
    assert sources("sub") == ["sub/c.webp", "sub/deep/d.gif"]
    assert sources("./sub/") == ["./sub/c.webp", "./sub/deep/d.gif"]
    assert sources("b.jpg", "a.PNG") == ["b.jpg", "a.PNG"]


@pytest.mark.parametrize("name", ["notes.txt", "noext", ".hidden.jpg", ".git/e.jpg"])
def test_a_named_file_is_listed_whatever_its_extension(tree: Path, name: str) -> None:
    assert sources(name) == [name]


def test_source_files_with_the_extension_of_a_clip_are_no_clips(tree: Path) -> None:
    """What is not text is listed, so that damaged clips are reported. A clip may begin in the middle of a packet."""
    folder = tree / "web"
    folder.mkdir()
    clip = film(folder / "clip.ts", 3).read_bytes()
    (folder / "cut.mts").write_bytes(clip[100:])
    packets = [clip[start : start + 188] for start in range(0, len(clip), 188)]
    (folder / "disc.MTS").write_bytes(b"".join(b"\0\0\0\0" + packet for packet in packets))
    (folder / "app.ts").write_text("export const GREETING = 'GGGG';\n" * 50)
    (folder / "latin.ts").write_bytes("// Grüße\n".encode("latin-1") * 200)
    (folder / "wide.ts").write_text("export {}\n", encoding="utf-16")
    (folder / "zh.ts").write_text("<TS>" + "图片" * 500, encoding="utf-8")
    (folder / "empty.ts").touch()
    (folder / "damaged.ts").write_bytes(bytes(range(256)) * 8)
    (folder / "filled.ts").write_bytes(b"\xff" * 2000)
    (folder / "short.ts").write_bytes(clip[:150])
    (folder / "conf.mts").write_text("export default {}\n")
    (folder / "lost.ts").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    listing = Listing(["web", "web/app.ts"])
    assert [file.source for file in listing] == [
        "web/clip.ts", "web/cut.mts", "web/damaged.ts", "web/disc.MTS", "web/empty.ts", "web/filled.ts", "web/lost.ts",
        "web/short.ts", "web/app.ts",
    ]  # fmt: skip
    assert listing.skipped == {OTHER: 5}


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
    files = list(Listing(["missing.jpg", "b.jpg", "b.jpg/x", "*.nothing", "", "nul\0"]))
    assert [file.error is None for file in files] == [False, True, False, False, False, False]
    problems = [file.error.problem for file in files if file.error]
    assert problems[0] == "missing.jpg: no such file or folder"
    assert problems[2] == "*.nothing: no file matches"
    assert problems[3] == "'': no such file or folder"
    assert all(file.error.hint for file in files if file.error)


def test_folder_too_deep_to_scan_is_a_record(tmp_path: Path) -> None:
    hostile.deep_tree(tmp_path)
    (tmp_path / "z.jpg").touch()
    deep, last = Listing([str(tmp_path)])
    assert deep.error and "too long" in deep.error.problem
    assert last == ListedFile(str(tmp_path / "z.jpg"))


@pytest.mark.parametrize("path", ["shut", "*", "shut/*", "**/x.jpg"])
def test_folder_that_cannot_be_scanned_is_a_record(tree: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Root may list every folder, so the error is raised in place of the system."""
    (tree / "shut").mkdir(0o311)
    scan = os.scandir

    def scandir(folder: str) -> Iterator[os.DirEntry[str]]:
        if os.path.basename(folder) == "shut":
            raise PermissionError(13, "Permission denied", folder)
        return cast(Iterator[os.DirEntry[str]], scan(folder))

    monkeypatch.setattr(os, "scandir", scandir)
    errors = [file.error.problem for file in Listing([path]) if file.error]
    assert errors[:1] == ["shut: no permission to read it"]


def test_links_never_loop(tree: Path) -> None:
    (tree / "sub/up").symlink_to(tree)
    (tree / "sub/deep/up").symlink_to(tree / "sub")
    (tree / "sub/self.jpg").symlink_to("self.jpg")
    (tree / "sub/gone.jpg").symlink_to("nowhere.jpg")
    listing = Listing(["sub"])
    assert [file.source for file in listing] == [
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
def test_the_same_file_is_listed_once(tree: Path, paths: list[str], expected: list[str], repeated: int) -> None:
    listing = Listing(paths)
    assert [file.source for file in listing] == expected
    assert listing.skipped[REPEAT] == repeated


def test_a_linked_file_is_listed_once(tree: Path) -> None:
    """By its own name if its folder is listed, else by the name of the link."""
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
    (file,) = Listing([str(tmp_path)])
    returned = json.loads(json.dumps(file.source))
    assert os.fsencode(returned) == raw
    assert load_image(returned).size == (96, 64)


def test_listing_streams(tree: Path) -> None:
    """The first image is listed before the second path is read."""

    def paths() -> Iterator[str]:
        yield "b.jpg"
        raise AssertionError("read ahead")

    assert list(islice(Listing(paths()), 1)) == [ListedFile("b.jpg")]


def test_listing_is_the_same_every_time(tree: Path) -> None:
    paths = [".", "sub", "**"]
    assert list(Listing(paths)) == list(Listing(paths))


def test_extensions_are_lower_case_with_a_dot() -> None:
    assert all(extension.startswith(".") and extension == extension.lower() for extension in IMAGE_EXTENSIONS)
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".heic", ".avif"} <= IMAGE_EXTENSIONS


@pytest.mark.parametrize("make", [list, tuple, iter])
def test_any_iterable_of_paths(tree: Path, make: Callable[[list[str]], Iterator[str]]) -> None:
    assert [file.source for file in Listing(make(["b.jpg"]))] == ["b.jpg"]
