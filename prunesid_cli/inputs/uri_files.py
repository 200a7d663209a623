"""Files behind URIs, such as `s3://bucket/a.jpg` or `https://host/a.jpg`: fsspec reads them.

What tells whether a file changed is its size with its ETag, or else with the time of its last change. A call that fails
is tried again, unless the file does not exist or may not be read.
"""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, BinaryIO, TypeVar

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.source import FileSource, FileStatus, FolderEntry

logger = logging.getLogger(__name__)
T = TypeVar("T")
MARK = "://"
TRIES, FIRST_PAUSE_SECONDS = 4, 1.0
"""How often a call is tried, and how long to wait after the first failure; each pause is twice as long as the last."""
FINAL_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, NotImplementedError)
VERSION_FIELDS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
"""Fields of fsspec's description of a file that change with its contents, the best first."""
SMALL_BYTES = 64 << 20
"""Files up to this size are read as a whole."""
MEMORY_SECONDS = 10.0
"""How long the last file is remembered: it is looked at and opened several times, and each time is a request."""


class UriFiles(FileSource):
    """Files behind URIs; see `FileSource`."""

    def __init__(self) -> None:
        self.last_status: tuple[str, float, FileStatus | None] = "", 0.0, None
        self.last_data: tuple[str, float, bytes] = "", 0.0, b""
        self.are_files = dict[str, bool]()

    def list(self, folder: str) -> Iterator[FolderEntry]:
        file_system, path = _connect(folder)
        for info in _retry(folder, lambda: file_system.ls(path, detail=True)):
            name = info["name"].rstrip("/").rpartition("/")[2]
            if info["name"].rstrip("/") != path.rstrip("/"):  # some list the folder itself
                yield FolderEntry(name, is_folder=info["type"] == "directory", is_link=False)

    def stat(self, path: str) -> FileStatus:
        last, seen, status = self.last_status
        if status is None or last != path or time.monotonic() > seen + MEMORY_SECONDS:
            file_system, inner = _connect(path)
            info = _retry(path, lambda: file_system.info(inner))
            is_folder = info["type"] == "directory"
            status = FileStatus(int(info.get("size") or 0), _version(info), is_file=not is_folder, is_folder=is_folder)
            self.last_status = path, time.monotonic(), status
        return status

    def open(self, path: str) -> BinaryIO:
        file_system, inner = _connect(path)
        if self.stat(path).size > SMALL_BYTES:
            file: BinaryIO = _retry(path, lambda: file_system.open(inner, "rb"))
            return file
        last, seen, data = self.last_data
        if last != path or time.monotonic() > seen + MEMORY_SECONDS:
            data = _retry(path, lambda: file_system.cat_file(inner))
            self.last_data = path, time.monotonic(), data
        return io.BytesIO(data)

    def is_file(self, path: str) -> bool:
        """Whether a path leads to a file. An answer is remembered."""
        if path not in self.are_files:
            try:
                is_file = self.stat(path).is_file
            except FileNotFoundError:
                return False
            except OSError:  # reading it reports the error
                return True
            self.are_files[path] = is_file
        return self.are_files[path]

    def fetch(self, path: str, copy: str) -> None:
        """Write a file to the local disk."""
        file_system, inner = _connect(path)
        _retry(path, lambda: file_system.get_file(inner, copy))

    def real_path(self, path: str) -> str:
        return path.rstrip("/")

    def glob(self, pattern: str) -> Iterator[str]:
        """The paths that match a pattern, sorted. `**` matches subfolders."""
        file_system, inner = _connect(pattern)
        for name in sorted(_retry(pattern, lambda: file_system.glob(inner))):
            yield file_system.unstrip_protocol(name)


def _connect(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and its path in it.

    Raises:
        UsageError: There is no such kind of URI, or a package for it is missing.
    """
    import fsspec  # type: ignore[import-untyped]

    try:
        file_system, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        problem = f"{uri.partition(MARK)[0]}{MARK} cannot be read: {error}"
        raise UsageError(problem, "install the package that it names") from error
    return file_system, path


def _retry(uri: str, call: Callable[[], T]) -> T:
    """The result of a call. Raises OSError if it fails each time."""
    pause = FIRST_PAUSE_SECONDS
    for number in range(1, TRIES + 1):
        try:
            return call()
        except FINAL_ERRORS:
            raise
        except Exception as error:  # each file system has errors of its own
            if number == TRIES:
                reason = f"not read in {TRIES} tries: {type(error).__name__}: {error}"
                raise OSError(errno.EIO, reason) from error
            logger.debug("%s: %s; trying again in %g s", uri, error, pause)
            time.sleep(pause)
            pause *= 2
    raise AssertionError


def _version(info: dict[str, Any]) -> int:
    """A number that stands for a version of a file, in place of the time of its last change."""
    value = next((info[name] for name in VERSION_FIELDS if info.get(name)), 0)
    if isinstance(value, datetime):
        return int(value.timestamp() * 10**9)
    if isinstance(value, int | float):
        return int(value * 10**9)
    # Less than any time of today, so that it never counts as a file that is changing.
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=7).digest(), "big")
