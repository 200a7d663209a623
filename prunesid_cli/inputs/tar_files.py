"""Members of tar files, such as the shards of WebDataset: `shard.tar/000123.jpg`.

A file is scanned once for where its members are, which reads their headers alone; then each member is read from its
place. A compressed tar file would have to be read from its start for each member, and is not supported.
"""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from prunesid_cli.inputs.containers import COPY_AGAIN, Container, ContainerOptions
from prunesid_cli.inputs.source import FolderEntry, MissingMemberError, SourceError
from prunesid_cli.types import Columns

MAX_NAME = 4096


class Span(NamedTuple):
    """Where a member is in its tar file, in bytes."""

    offset: int
    size: int


class TarContainer(Container):
    """A tar file; see `Container`.

    Attributes:
        members: Name -> place.
        fault: What is wrong with the file; empty if nothing is.
        outside: Last parts of names that lead out of the file.
        folders: Name of a folder -> names of the files and folders in it, and whether they are folders; "" is the top.
    """

    def __init__(self, path: str, size: int) -> None:
        """Find the members.

        Raises:
            OSError: The file cannot be read.
        """
        self.path, self.file_size, self.fault = path, size, ""
        self.members, self.outside, end = dict[str, Span](), list[str](), 0
        self.folders: defaultdict[str, dict[str, bool]] = defaultdict(dict)
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
                            self.outside.append(name[:MAX_NAME].rpartition("/")[2] or "?")
                        else:
                            self._add(name, Span(member.offset_data, member.size))
                    end = tar.offset
            except Exception as error:  # tarfile raises many kinds for hostile headers
                self.fault = f"damaged after byte {end:,}: {error}"
            file.seek(end)
            # tarfile ends without an error at what is no header.
            if not self.fault and (end > size or any(file.read(tarfile.BLOCKSIZE))):
                self.fault = f"damaged or cut short after byte {min(end, size):,}"

    def _add(self, name: str, span: Span) -> None:
        """Add a member. Of several with one name, the last one counts, as for tar itself."""
        self.members[name] = span
        is_folder = False
        while name:
            folder, _, last = name.rpartition("/")
            self.folders[folder].setdefault(last, is_folder)
            name, is_folder = folder, True

    def list(self, folder: str, options: ContainerOptions) -> Iterator[FolderEntry]:
        for entry, is_folder in self.folders.get(folder, {}).items():
            yield FolderEntry(entry, is_folder, is_link=False)
        for name in [] if folder else self.outside:
            yield FolderEntry(name, is_folder=False, is_link=False, is_outside=True)
        if self.fault and not folder:
            raise SourceError(self.fault, COPY_AGAIN)

    def size(self, name: str) -> int | None:
        span = self.members.get(name)
        return span.size if span else None

    def has_folder(self, name: str) -> bool:
        return name in self.folders

    def open(self, name: str) -> BinaryIO:
        span = self.members.get(name)
        if span is None:
            raise MissingMemberError("not in the tar file", "check the spelling")
        if span.offset + span.size > self.file_size:
            raise SourceError("the tar file ends before the end of this file", COPY_AGAIN)
        return io.BufferedReader(_Window(self.path, span))

    def columns(self, name: str) -> Columns:
        return ()


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
