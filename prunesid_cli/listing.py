"""Files, folders and globs -> the images and clips among them, one at a time, in an order that is the same every time.

A path that cannot be used is given with its error, never raised: one bad name does not end a run of thousands.
Names may hold bytes that are no UTF-8; they stay `str` (surrogateescape) and pass through JSON as they are.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePath
from typing import BinaryIO

from prunesid_cli.errors import MediaError
from prunesid_cli.media import unreadable

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
GLOB_CHARACTERS = "*?["
HIDDEN, OTHER, LINK, REPEAT = "hidden file", "other file", "linked folder", "repeat"
Tell = Callable[[str, str], None]
CHUNK = 1 << 16  # bytes of a list read at once


@dataclass(frozen=True)
class Found:
    """A file to read, or a path that cannot be used and why."""

    source: str
    error: MediaError | None = None


class Listing(Iterator[Found]):
    """What `find_media` gives; `passed`, final once the listing has ended, counts what it passed over.

    HIDDEN  files and folders in folders
    OTHER   files in folders whose extension is that of no image or video
    LINK    links to folders inside folders: not followed, so no loop is possible
    REPEAT  paths that lead to a file or folder already given
    """

    def __init__(self, paths: Iterable[str], tell: Tell) -> None:
        self.passed: Counter[str] = Counter()
        self._tell = tell
        self._seen: set[str] = set()
        self._found = self._search(paths)

    def __next__(self) -> Found:
        return next(self._found)

    def _search(self, paths: Iterable[str]) -> Iterator[Found]:
        for path in paths:
            try:
                status = os.stat(path)
            except (OSError, ValueError) as error:  # ValueError: a NUL in the name
                yield from self._missing(path, error)
            else:
                yield from self._named(path, stat.S_ISDIR(status.st_mode))

    def _named(self, path: str, is_folder: bool) -> Iterator[Found]:
        """A named file is tried whatever its extension."""
        if is_folder:
            yield from self._walk(path)
        elif self._is_new(path):
            yield Found(path)

    def _missing(self, path: str, error: Exception) -> Iterator[Found]:
        if not isinstance(error, FileNotFoundError) or not _is_glob(path) or os.path.lexists(path):
            yield Found(path, unreadable(path, error))
            return
        matched = False
        for match in _expand(path):
            matched = True
            yield from self._named(match, os.path.isdir(match))
        if not matched:
            yield Found(path, MediaError(f"{path}: no file matches", "`*` passes over hidden files; `**` goes deeper"))

    def _walk(self, top: str) -> Iterator[Found]:
        """A stack and no recursion: a tree may be deeper than Python's."""
        stack = [(top, True)]
        while stack:
            path, is_folder = stack.pop()
            if not self._is_new(path):
                continue
            if not is_folder:
                yield Found(path)
                continue
            try:
                stack += reversed(self._wanted(path))
            except OSError as error:
                yield Found(path, unreadable(path, error))

    def _wanted(self, folder: str) -> list[tuple[str, bool]]:
        """The images, clips and folders in a folder, by name; counts what is passed over."""
        wanted = []
        for entry in _entries(folder):
            is_folder = _is_folder(entry)
            if entry.name.startswith("."):
                self._pass(HIDDEN, entry.path)
            elif is_folder and entry.is_symlink():
                self._pass(LINK, entry.path)
            elif is_folder or os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                wanted.append((entry.path, is_folder))
            else:
                self._pass(OTHER, entry.path)
        return wanted

    def _is_new(self, path: str) -> bool:
        real = os.path.realpath(path)
        if real in self._seen:
            self._pass(REPEAT, path)
            return False
        self._seen.add(real)
        return True

    def _pass(self, what: str, path: str) -> None:
        self.passed[what] += 1
        self._tell(what, path)


def find_media(paths: Iterable[str], tell: Tell = lambda what, path: None) -> Listing:
    """Each image or clip once: named files, what globs match, and in folders the files with such an extension.

    `tell` is called with what is passed over, and its path.
    """
    return Listing(paths, tell)


def read_list(stream: BinaryIO, null_separated: bool = False) -> Iterator[str]:
    """The paths in a stream, one a line or NUL-separated, each given as soon as it was read."""
    items = _split_at_nul(stream) if null_separated else (line.rstrip(b"\r\n") for line in stream)
    return (os.fsdecode(item) for item in items if item)


def _split_at_nul(stream: BinaryIO) -> Iterator[bytes]:
    read = getattr(stream, "read1", stream.read)  # `read` would wait for a whole chunk from a pipe
    tail = b""
    while chunk := read(CHUNK):
        *whole, tail = (tail + chunk).split(b"\0")
        yield from whole
    yield tail


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder or ".") as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: reading it will tell
        return False


def _is_glob(path: str) -> bool:
    return any(char in path for char in GLOB_CHARACTERS)


def _expand(pattern: str) -> Iterator[str]:
    """The paths that a glob matches. Unlike `glob.glob`: sorted, streaming, and `**` follows no links."""
    path = PurePath(pattern)
    return _match(path.anchor, path.parts[1:] if path.anchor else path.parts)


def _match(base: str, parts: tuple[str, ...]) -> Iterator[str]:
    if not parts:
        yield base
        return
    head, rest = parts[0], parts[1:]
    if not _is_glob(head):
        joined = os.path.join(base, head)
        yield from _match(joined, rest) if os.path.lexists(joined) else ()
        return
    try:
        entries = _entries(base)
    except NotADirectoryError:
        return
    except OSError:  # given as it is, so that walking it says why
        yield base
        return
    if head == "**":
        yield from _match(base, rest)
    for entry in entries:
        joined = os.path.join(base, entry.name)
        if head != "**":
            yield from _match(joined, rest) if _fits(entry.name, head) else ()
        elif not entry.name.startswith(".") and _is_folder(entry) and not entry.is_symlink():
            yield from _match(joined, parts)


def _fits(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and (pattern.startswith(".") or not name.startswith("."))
