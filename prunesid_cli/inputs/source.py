"""Where input files come from: the protocol `FileSource`, and the local file system as its first implementation.

Listing, decoding of images and hashing read files only through `files.FILES`, which passes each call to the source that
a path belongs to. Another kind of storage, such as objects in a bucket, needs one more implementation. Clips are
decoded from a local file, so those of other sources are copied first.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol

from prunesid_cli.errors import MediaError
from prunesid_cli.text import SURROGATE_HINT
from prunesid_cli.types import Columns

NUL_PROBLEM, NUL_HINT = "a name cannot hold a NUL", "take the NUL out of it"
ERROR_TEXTS = {
    FileNotFoundError: ("no such file or folder", "check the spelling; quote names that hold spaces"),
    NotADirectoryError: ("no such file or folder", "a part of this path is a file, not a folder"),
    PermissionError: ("no permission to read it", "check it with: ls -l"),
    UnicodeEncodeError: ("no file can have this name", SURROGATE_HINT),
    MemoryError: ("not enough memory to decode it", "make the picture smaller, or load fewer at once"),
}
"""Error -> problem and hint."""


class FolderEntry(NamedTuple):
    """A file or folder in a folder.

    Attributes:
        name: Its name.
        is_folder: Whether it is a folder. For a link, whether it leads to one.
        is_link: Whether it is a link.
        is_outside: Whether it is a file in a container whose name leads out of that; such a file is not read.
    """

    name: str
    is_folder: bool
    is_link: bool
    is_outside: bool = False


class SourceError(OSError):
    """An error of a file source that says what to do about it."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(errno.EIO, problem)
        self.hint = hint


class MissingMemberError(FileNotFoundError):
    """What a path names in a container is not there."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(errno.ENOENT, problem)
        self.hint = hint


@dataclass(frozen=True)
class FileStatus:
    """What is known about a file or folder without opening it.

    Attributes:
        size: Size in bytes.
        mtime_ns: Time of the last change, in nanoseconds since the epoch.
        is_file: Whether it is a regular file; False for folders, pipes and devices.
        is_folder: Whether it is a folder.
    """

    size: int
    mtime_ns: int
    is_file: bool
    is_folder: bool


class FileSource(Protocol):
    """A place that holds files. Methods raise OSError, or ValueError for a path that no file can have."""

    def list(self, folder: str) -> Iterator[FolderEntry]:
        """The entries of a folder, in any order."""

    def stat(self, path: str) -> FileStatus:
        """The status of a file or folder; links are followed."""

    def open(self, path: str) -> BinaryIO:
        """Open a regular file for reading. Never blocks, even if a pipe has replaced the file."""

    def exists(self, path: str, follow_links: bool = True) -> bool:
        """Whether there is such a file or folder. Without `follow_links`, a broken link exists, too."""
        try:
            self.stat(path)
        except OSError:
            return False
        return True

    def real_path(self, path: str) -> str:
        """The absolute path without links: the same for all paths that lead to one file."""

    def columns(self, path: str) -> Columns:
        """What else is known of a file."""
        return ()

    def is_container(self, folder: str) -> bool:
        """Whether a folder is in fact a file that holds others, whose order is kept."""
        return False

    def holds_images_only(self, folder: str) -> bool:
        """Whether all entries of a folder are images, whatever their names are."""
        return False


class LocalFiles(FileSource):
    """The local file system."""

    def list(self, folder: str) -> Iterator[FolderEntry]:
        with os.scandir(folder or ".") as entries:
            for entry in entries:
                try:
                    is_folder = entry.is_dir()
                except OSError:  # for example a link to itself; reading it reports the error
                    is_folder = False
                yield FolderEntry(entry.name, is_folder, entry.is_symlink())

    def stat(self, path: str) -> FileStatus:
        status = os.stat(path)
        mode = status.st_mode
        return FileStatus(status.st_size, status.st_mtime_ns, is_file=stat.S_ISREG(mode), is_folder=stat.S_ISDIR(mode))

    def open(self, path: str) -> BinaryIO:
        return open(path, "rb", opener=lambda path, flags: os.open(path, flags | getattr(os, "O_NONBLOCK", 0)))

    def exists(self, path: str, follow_links: bool = True) -> bool:
        return os.path.exists(path) if follow_links else os.path.lexists(path)

    def real_path(self, path: str) -> str:
        return os.path.realpath(path)


LOCAL = LocalFiles()


def to_media_error(path: str, error: Exception, files: FileSource = LOCAL) -> MediaError:
    """Turn an error of a file source into one that names the path."""
    reason = getattr(error, "strerror", None) or str(error)
    problem, hint = ERROR_TEXTS.get(type(error), (reason, "check that it is a file or folder that can be read"))
    hint = getattr(error, "hint", hint)
    if "\0" in path:  # a ValueError of Python
        problem, hint = NUL_PROBLEM, NUL_HINT
    if isinstance(error, FileNotFoundError) and files.exists(path, follow_links=False):
        problem, hint = "a link that leads nowhere", "repair or remove it"
    return MediaError(f"{path or repr(path)}: {problem}", hint)
