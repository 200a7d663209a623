"""Files, folders and globs -> the images and clips among them, one at a time, in an order that is the same every time.

A path that cannot be used is given with its error, never raised: one bad name does not end a run of thousands.
Names may hold bytes that are no UTF-8; they stay `str` (surrogateescape) and pass through JSON as they are.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from prunesid_cli.errors import MediaError, UsageError
from prunesid_cli.inputs.glob_paths import expand, is_folder, is_glob
from prunesid_cli.inputs.image import unreadable

IMAGE_EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".heic", ".heif", ".hif"}
    | {".gif", ".bmp", ".dib", ".tif", ".tiff", ".jp2", ".j2k", ".ico", ".qoi"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
VIDEO_EXTENSIONS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".asf", ".ogv", ".3gp", ".3g2"}
    | {".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".mxf"}
)
EXTENSIONS = IMAGE_EXTENSIONS | VIDEO_EXTENSIONS
HIDDEN, OTHER, LINK, REPEAT = "hidden file", "other file", "linked folder", "repeat"
FILE, LINKED, FOLDER = "f", "l", "d"
PASSED = {"h": HIDDEN, "o": OTHER, "x": LINK}
"""Marks of what is in a folder: what is given, and what is passed over."""
Entry = tuple[str, str, str]
"""Path, real path (of a link, its own), mark."""
Tell = Callable[[str, str], None]
Opened = Callable[[str], None]
CHUNK = 1 << 16  # bytes of a list read at once


@dataclass(frozen=True)
class ListedFile:
    """A file to read, or a path that cannot be used and why."""

    source: str
    error: MediaError | None = None


class Listing(Iterator[ListedFile]):
    """What `find_media` gives; `passed`, final once the listing has ended, counts what it passed over.

    HIDDEN  files and folders in folders
    OTHER   files in folders whose extension is that of no image or video
    LINK    links to folders inside folders: not followed, so no loop is possible
    REPEAT  paths that lead to a file or folder already given, or to a file that comes with its folder

    Memory grows with folders and with files that were named, not with the files in a folder.
    """

    def __init__(self, paths: Iterable[str], tell: Tell, opened: Opened) -> None:
        self.skipped: Counter[str] = Counter()
        self._tell, self._opened = tell, opened
        self._walked = set[bytes]()
        self._given = set[bytes]()
        self._found = self._search(paths)

    def __next__(self) -> ListedFile:
        return next(self._found)

    def _search(self, paths: Iterable[str]) -> Iterator[ListedFile]:
        for path in paths:
            try:
                status = os.stat(path)
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                yield from self._missing(path, error)
            else:
                yield from self._named(path, stat.S_ISDIR(status.st_mode))

    def _named(self, path: str, is_folder: bool) -> Iterator[ListedFile]:
        """A named file is tried whatever its extension."""
        if is_folder:
            yield from self._walk(path)
        elif self._is_new(path):
            yield ListedFile(path)

    def _missing(self, path: str, error: Exception) -> Iterator[ListedFile]:
        if not isinstance(error, FileNotFoundError) or not is_glob(path) or os.path.lexists(path):
            yield ListedFile(path, unreadable(path, error))
            return
        matched = False
        for match in expand(path):
            matched = True
            yield from self._named(match, os.path.isdir(match))
        if matched:
            self._opened(path)
        else:
            yield ListedFile(
                path, MediaError(f"{path}: no file matches", "`*` passes over hidden files; `**` goes deeper")
            )

    def _walk(self, top: str) -> Iterator[ListedFile]:
        """A stack and no recursion: a tree may be deeper than Python's."""
        stack: list[Iterator[Entry]] = [iter([(top, os.path.realpath(top), FOLDER)])]
        while stack:
            entry = next(stack[-1], None)
            if entry is None:
                stack.pop()
                continue
            path, real, mark = entry
            if not (self._is_new(path) if mark == LINKED else self._is_first(path, real)):
                continue
            if mark != FOLDER:
                yield ListedFile(path)
                continue
            try:
                stack.append(self._wanted(path, real))
            except OSError as error:
                self._given.add(_digest(real))
                yield ListedFile(path, unreadable(path, error))

    def _wanted(self, folder: str, real: str) -> Iterator[Entry]:
        """The images, clips and folders in a folder, by name; counts what is passed over."""
        with os.scandir(folder or ".") as entries:
            marked = sorted(f"{entry.name}\0{_mark(entry)}" for entry in entries)
        for name, _, mark in (one.partition("\0") for one in marked):
            if mark in PASSED:
                self._pass(PASSED[mark], os.path.join(folder, name))
        self._walked.add(_digest(real))
        self._opened(folder)
        return _split(folder, real, "/".join(one for one in marked if one[-1] not in PASSED))

    def _is_new(self, path: str) -> bool:
        """Of a file that was named, or linked to: whether it neither came before nor comes with the folder it is in."""
        real = os.path.realpath(path)
        folder, name = os.path.split(real)
        if _is_media(name) and _digest(folder) in self._walked and _is_there(real):
            self._pass(REPEAT, path)
            return False
        is_new = self._is_first(path, real)
        if is_new:
            self._given.add(_digest(real))
        return is_new

    def _is_first(self, path: str, real: str) -> bool:
        digest = _digest(real)
        if digest in self._given or digest in self._walked:
            self._pass(REPEAT, path)
            return False
        return True

    def _pass(self, what: str, path: str) -> None:
        self.skipped[what] += 1
        self._tell(what, path)


def _split(folder: str, real: str, marked: str) -> Iterator[Entry]:
    """From one string, which is a fraction of as many strings as there may be files."""
    start = 0
    while start < len(marked):
        end = marked.find("/", start)
        end = len(marked) if end < 0 else end
        name, _, mark = marked[start:end].partition("\0")
        yield os.path.join(folder, name), os.path.join(real, name), mark
        start = end + 1


def _mark(entry: os.DirEntry[str]) -> str:
    is_link = entry.is_symlink()
    if entry.name.startswith("."):
        return "h"
    if is_folder(entry):
        return "x" if is_link else FOLDER
    if not _is_media(entry.name):
        return "o"
    return LINKED if is_link else FILE


def _is_there(real: str) -> bool:
    """Whether a real path is one: a link that leads nowhere, or to itself, ends in none."""
    return os.path.lexists(real) and not os.path.islink(real)


def _is_media(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def _digest(real: str) -> bytes:
    """Stands for a path in a fraction of its memory."""
    return hashlib.blake2b(os.fsencode(real), digest_size=16).digest()


def find_media(
    paths: Iterable[str], tell: Tell = lambda what, path: None, opened: Opened = lambda path: None
) -> Listing:
    """Each image or clip once: named files, what globs match, and in folders the files with such an extension.

    `tell` is called with what is passed over, and its path; `opened` with folders that could be read, and globs that
    matched.
    """
    return Listing(paths, tell, opened)


def read_list(stream: BinaryIO, null_separated: bool = False) -> Iterator[str]:
    """The paths in a stream, one a line or NUL-separated, each given as soon as it was read.

    Raises:
        UsageError: they are separated the other way.
    """
    items = _pieces(unbuffered(stream), *((b"\0", b"\n") if null_separated else (b"\n", b"\0")))
    return (os.fsdecode(item) for item in items if item)


def unbuffered(stream: BinaryIO) -> BinaryIO | io.RawIOBase:
    """Past its buffer, where it has one: a thread that waits in there for a pipe would keep the process from ending."""
    return getattr(stream, "raw", stream)


def _pieces(stream: BinaryIO | io.RawIOBase, end: bytes, other: bytes) -> Iterator[bytes]:
    read = getattr(stream, "read1", stream.read)  # `read` of a buffer would wait for a whole chunk from a pipe
    tail, is_one = b"", True
    while chunk := read(CHUNK):
        *whole, tail = (tail + chunk).split(end)
        is_one = is_one and not whole
        if is_one and len(tail) > CHUNK:  # else all of a list would be read first
            _check_name(tail, other)
        yield from (one.rstrip(b"\r") for one in whole) if end == b"\n" else whole
    if is_one:
        _check_name(tail, other)
    yield tail


def _check_name(one: bytes, other: bytes) -> None:
    """Whether what is a single name so far is none but a list."""
    if other in one.rstrip(other) and not os.path.lexists(one):
        how, way = ("NUL", "add -0") if other == b"\0" else ("line", "leave out -0")
        raise UsageError(f"the list on stdin is separated by {how}", way)
