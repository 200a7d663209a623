"""Globs -> the paths that they match. Unlike `glob.glob`: sorted, streaming, and `**` follows no links."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import PurePath

GLOB_CHARACTERS = "*?["


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder or ".") as entries:
        return sorted(entries, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: reading it will tell
        return False


def is_glob(path: str) -> bool:
    return any(char in path for char in GLOB_CHARACTERS)


def expand(pattern: str) -> Iterator[str]:
    path = PurePath(pattern)
    return _match(path.anchor, path.parts[1:] if path.anchor else path.parts)


def _match(base: str, parts: tuple[str, ...]) -> Iterator[str]:
    if not parts:
        yield base
        return
    head, rest = parts[0], parts[1:]
    if not is_glob(head):
        join_windows = os.path.join(base, head)
        yield from _match(join_windows, rest) if os.path.lexists(join_windows) else ()
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
        join_windows = os.path.join(base, entry.name)
        if head != "**":
            yield from _match(join_windows, rest) if _fits(entry.name, head) else ()
        elif not entry.name.startswith(".") and is_folder(entry) and not entry.is_symlink():
            yield from _match(join_windows, parts)


def _fits(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) and (pattern.startswith(".") or not name.startswith("."))
