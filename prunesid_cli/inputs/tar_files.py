"""Members of tar files, such as the shards of WebDataset: `shard.tar/000123.jpg`. A tar file is read as a folder.

A file is scanned once for where its members are, which reads their headers alone; then each member is read from its
place. A compressed tar file would have to be read from its start for each member, and is not supported.
"""

from __future__ import annotations

import errno
import io
import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from prunesid_cli.inputs.source import FileSource, FileStatus, FolderEntry, LocalFiles

SUFFIX = ".tar"
CACHED_INDEXES = 8
"""Tar files whose members a process remembers."""
MAX_NAME = 4096


class Span(NamedTuple):
    """Where a member is in its tar file, in bytes."""

    offset: int
    size: int


@dataclass
class TarIndex:
    """The members of a tar file.

    Attributes:
        members: Name -> place.
        folders: Name of a folder -> names of the files and folders in it, and whether they are folders; "" is the top.
        fault: What is wrong with the file; empty if nothing is.
    """

    members: dict[str, Span] = field(default_factory=dict)
    folders: defaultdict[str, dict[str, bool]] = field(default_factory=lambda: defaultdict(dict))
    fault: str = ""

    def add(self, name: str, span: Span) -> None:
        """Add a member. Of several with one name, the last one counts, as for tar itself."""
        self.members[name] = span
        is_folder = False
        while name:
            folder, _, last = name.rpartition("/")
            self.folders[folder].setdefault(last, is_folder)
            name, is_folder = folder, True


@lru_cache(CACHED_INDEXES)
def read_index(path: str, size: int, mtime_ns: int) -> TarIndex:
    """Find the members of a tar file.

    Args:
        path: The file.
        size: Its size in bytes.
        mtime_ns: When it was changed last, so that another version of it is read again.

    Raises:
        OSError: It cannot be read.
    """
    index, num_unsafe, end = TarIndex(), 0, 0
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    end = tar.offset
                    name = posixpath.normpath(member.name.lstrip("/"))
                    if not member.isreg() or member.issparse():
                        continue
                    if name.startswith("..") or name == "." or len(name) > MAX_NAME or "\0" in name:
                        num_unsafe += 1
                    else:
                        index.add(name, Span(member.offset_data, member.size))
                end = tar.offset
        except Exception as error:  # tarfile raises many kinds for hostile headers
            index.fault = f"damaged after byte {end:,}: {error}"
        file.seek(end)
        # tarfile ends without an error at what is no header.
        if not index.fault and (end > size or any(file.read(tarfile.BLOCKSIZE))):
            index.fault = f"damaged or cut short after byte {min(end, size):,}"
    if num_unsafe:
        left_out = f"{num_unsafe:,} names that lead out of it were left out"
        index.fault = f"{index.fault}; {left_out}" if index.fault else left_out
    return index


class TarFiles(FileSource):
    """The members of tar files on the local disk; see `FileSource`. Paths are those of members, or of tar files."""

    def __init__(self, local: LocalFiles) -> None:
        self.local = local

    def _find(self, path: str) -> tuple[str, FileStatus, TarIndex, str]:
        """The tar file, its status, its members, and the name of a member or folder in it; "" for all of it."""
        tar, _, name = split_path(path)
        status = self.local.stat(tar)
        return tar, status, read_index(self.local.real_path(tar), status.size, status.mtime_ns), name

    def list(self, folder: str) -> Iterator[FolderEntry]:
        _, _, index, name = self._find(folder)
        for entry, is_folder in index.folders.get(name, {}).items():
            yield FolderEntry(entry, is_folder, is_link=False)
        if index.fault and not name:
            raise OSError(errno.EIO, index.fault)

    def stat(self, path: str) -> FileStatus:
        _, status, index, name = self._find(path)
        if span := index.members.get(name):
            return FileStatus(span.size, status.mtime_ns, is_file=True, is_folder=False)
        if not name or name in index.folders:
            return FileStatus(status.size, status.mtime_ns, is_file=False, is_folder=True)
        raise FileNotFoundError(errno.ENOENT, "no such file in the tar file", path)

    def open(self, path: str) -> BinaryIO:
        tar, status, index, name = self._find(path)
        span = index.members.get(name)
        if span is None:
            raise FileNotFoundError(errno.ENOENT, "no such file in the tar file", path)
        if span.offset + span.size > status.size:
            raise OSError(errno.EIO, "the tar file ends before the end of this file")
        return io.BufferedReader(_Window(tar, span))

    def real_path(self, path: str) -> str:
        tar, separator, name = split_path(path)
        return f"{self.local.real_path(tar)}{separator}{name}"


def split_path(path: str) -> tuple[str, str, str]:
    """A path as its tar file, a slash, and a name in it; the last two are empty for the file itself.

    Which part is the tar file is decided by its name alone.
    """
    end = f"{path}/".find(f"{SUFFIX}/")
    if end < 0:
        return "", "", path
    end += len(SUFFIX)
    name = path[end + 1 :].rstrip("/")
    return path[:end], "/" if name else "", posixpath.normpath(name) if name else ""


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, path: str, span: Span) -> None:
        self.descriptor, self.span, self.position = os.open(path, os.O_RDONLY), span, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.span.size}[whence]
        self.position = max(start + offset, 0)
        return self.position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = max(min(len(buffer), self.span.size - self.position), 0)
        data = os.pread(self.descriptor, count, self.span.offset + self.position)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self.descriptor)
        super().close()
