"""Glob patterns. Unlike `glob.glob`, matches come sorted and one at a time, and `**` does not follow links."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from fnmatch import fnmatch, fnmatchcase
from pathlib import PurePath

from prunesid_cli.inputs.files import FILES, URIS
from prunesid_cli.inputs.source import FileSource
from prunesid_cli.inputs.uri_files import MARK

GLOB_CHARACTERS = "*?["
NUMBER_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")


def is_glob(path: str) -> bool:
    """Whether a path holds a character that is special in a glob pattern."""
    return any(char in path for char in GLOB_CHARACTERS)


def matches_path(source: str, pattern: str) -> bool:
    """Whether a glob matches a path, or only its name if the glob has no slash. `*` matches slashes, too.

    "./a.png" matches the path "a.png", and not the name of a file in another folder.
    """
    if "/" not in pattern and fnmatchcase(PurePath(source).name, pattern):
        return True
    return fnmatchcase(source, pattern) or fnmatchcase(source, pattern.removeprefix("./"))


def expand_ranges(path: str, files: FileSource = FILES) -> Iterator[str]:
    """The paths that `shard-{000..099}.tar` stands for, as in a shell. A file of that very name stands for itself."""
    match = NUMBER_RANGE.search(path)
    if match is None or files.exists(path):
        yield path
        return
    first, last = int(match[1]), int(match[2])
    width = max(len(match[1]), len(match[2])) if "0" in (match[1][0], match[2][0]) else 0
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        yield from expand_ranges(f"{path[: match.start()]}{number:0{width}d}{path[match.end() :]}", files)


def expand_glob(pattern: str, files: FileSource = FILES) -> Iterator[str]:
    """The paths that match a pattern, in order of their names.

    A folder on the way that cannot be listed is given itself, so that listing it later reports the error.
    """
    if MARK in pattern:
        return URIS.glob(pattern)
    path = PurePath(pattern)
    return _match(path.anchor, path.parts[1:] if path.anchor else path.parts, files)


def _match(base: str, parts: tuple[str, ...], files: FileSource) -> Iterator[str]:
    if not parts:
        yield base
        return
    first, rest = parts[0], parts[1:]
    if not is_glob(first):
        path = os.path.join(base, first)
        if files.exists(path, follow_links=False):
            yield from _match(path, rest, files)
        return
    try:
        entries = sorted(files.list(base))
    except NotADirectoryError:
        return
    except OSError:
        yield base
        return
    if first == "**":
        yield from _match(base, rest, files)
    for entry in entries:
        path, is_hidden = os.path.join(base, entry.name), entry.name.startswith(".")
        if first == "**":
            if entry.is_folder and not entry.is_link and not is_hidden:
                yield from _match(path, parts, files)
        elif fnmatch(entry.name, first) and (first.startswith(".") or not is_hidden):
            yield from _match(path, rest, files)
