"""Files that hold inputs, and are read as folders: tar files, PDF documents and Parquet files.

`shard.tar/000123.jpg` is a member, `a.pdf/page-0003` a page, `train.parquet/row-000000123` a row. A name has all that
is needed to read the input again: a page that is drawn at another resolution has another name.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, BinaryIO, NamedTuple, Protocol

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.downloads import download
from prunesid_cli.inputs.source import (
    FileSource,
    FileStatus,
    FolderEntry,
    LocalFiles,
    MissingMemberError,
)
from prunesid_cli.inputs.uri_files import MARK, UriFiles
from prunesid_cli.types import Columns

CACHED_CONTAINERS = 8
"""Containers whose contents a process remembers."""
DEFAULT_DPI = 150
COPY_AGAIN = "copy or download it again; what could be read of it is used"


@dataclass(frozen=True)
class ContainerOptions:
    """How containers are listed.

    Attributes:
        image_column: Column of a table with the images, or with their paths; empty: it is found by its type and name.
        id_column: Column of a Parquet file that names its rows; empty: they are numbered.
        dpi: Resolution of pages, in dots per inch.
    """

    image_column: str = ""
    id_column: str = ""
    dpi: int = DEFAULT_DPI


DEFAULT_OPTIONS = ContainerOptions()


class Container(Protocol):
    """An open container. Methods raise OSError for what cannot be read; names of members are relative to it."""

    def has_inputs(self, options: ContainerOptions) -> bool:
        """Whether it is meant to hold inputs."""
        return True

    def list(self, folder: str, options: ContainerOptions) -> Iterator[FolderEntry]:
        """The entries of a folder in it, in their order there; "" is the top.

        After the entries of the top that can be read, OSError says what is wrong with the rest.
        """

    def size(self, name: str) -> int | None:
        """Bytes of a member, about; None if there is no such member."""

    def has_folder(self, name: str) -> bool:
        """Whether there is such a folder in it."""

    def open(self, name: str) -> BinaryIO:
        """Open a member."""

    def columns(self, name: str) -> Columns:
        """What else is known of a member."""


class ContainerType(NamedTuple):
    """A kind of container: its class, and the package that reads it and the extra that installs it, if one is needed.

    `is_media`: whether all its members are images, whatever their names are.
    """

    module: str
    class_name: str
    package: str = ""
    extra: str = ""
    is_media: bool = True


CONTAINER_TYPES = {
    ".tar": ContainerType("tar_files", "TarContainer", is_media=False),
    ".pdf": ContainerType("pdf_files", "PdfContainer", "pypdfium2", "pdf"),
    ".parquet": ContainerType("parquet_files", "ParquetContainer", "pyarrow", "parquet"),
}
CONTAINER_PATH = re.compile(rf"(.*?({'|'.join(map(re.escape, CONTAINER_TYPES))}))(?:/+(.*))?", re.DOTALL)


class ContainerPath(NamedTuple):
    """A path in two parts: the container, and a name in it, "" for all of it. Without a container, only the name."""

    container: str
    suffix: str
    name: str

    @property
    def type(self) -> ContainerType:
        return CONTAINER_TYPES[self.suffix]


@lru_cache(1024)
def split_path(path: str) -> ContainerPath:
    """Split a path at the first container in it, which is known by its name alone."""
    match = CONTAINER_PATH.fullmatch(path)
    if match is None:
        return ContainerPath("", "", path)
    name = (match[3] or "").rstrip("/")
    return ContainerPath(match[1], match[2], posixpath.normpath(name) if name else "")


def is_container_name(name: str) -> bool:
    """Whether a file of this name is read as a folder. Not if the package for it is missing."""
    container_type = CONTAINER_TYPES.get(os.path.splitext(name)[1])
    return container_type is not None and (not container_type.package or find_spec(container_type.package) is not None)


@lru_cache(CACHED_CONTAINERS)
def open_container(path: str, suffix: str, size: int, mtime_ns: int) -> Container:
    """Open a container.

    Args:
        path: Its file.
        suffix: What its name ends with.
        size: Its size in bytes.
        mtime_ns: When it was changed last, so that another version of it is opened again.

    Raises:
        OSError: It cannot be read.
        UsageError: The package that reads it is missing.
    """
    container_type = CONTAINER_TYPES[suffix]
    try:
        module = import_module(f"prunesid_cli.inputs.{container_type.module}")
    except ImportError as error:
        problem = f"{path}: reading it needs {container_type.package}"
        raise UsageError(problem, f"pip install 'prunesid[{container_type.extra}]'") from error
    container: Any = getattr(module, container_type.class_name)
    opened: Container = container(path, size)
    return opened


class ContainerFiles(FileSource):
    """What is in containers; see `FileSource`. Paths are those of members, or of containers."""

    def __init__(self, local: LocalFiles, uris: UriFiles, options: ContainerOptions) -> None:
        self.local, self.uris, self.options = local, uris, options

    def _outer(self, container: str) -> FileSource:
        """Where a container is."""
        return self.uris if MARK in container else self.local

    def _open(self, path: str) -> tuple[Container, FileStatus, str]:
        """The container of a path, the status of its file, and the name in it."""
        split = split_path(path)
        status = self._outer(split.container).stat(split.container)
        if MARK in path:
            copy = download(split.container, status, partial(self.uris.fetch, split.container))
        else:
            copy = self.local.real_path(split.container)
        return open_container(copy, split.suffix, status.size, status.mtime_ns), status, split.name

    def list(self, folder: str) -> Iterator[FolderEntry]:
        container, _, name = self._open(folder)
        yield from container.list(name, self.options)

    def stat(self, path: str) -> FileStatus:
        split = split_path(path)
        if not split.name:  # without opening it
            status = self._outer(split.container).stat(split.container)
            return FileStatus(status.size, status.mtime_ns, is_file=False, is_folder=True)
        container, status, name = self._open(path)
        size = container.size(name)
        if size is not None:
            return FileStatus(size, status.mtime_ns, is_file=True, is_folder=False)
        if container.has_folder(name):
            return FileStatus(status.size, status.mtime_ns, is_file=False, is_folder=True)
        first = next(container.list("", self.options), None)
        example = f"name what is in it, as {split.container}/{first.name}" if first else "it is empty"
        raise MissingMemberError(f"not in {split.container}", example)

    def open(self, path: str) -> BinaryIO:
        container, _, name = self._open(path)
        return container.open(name)

    def has_inputs(self, path: str) -> bool:
        """Whether a file may be a container with inputs. Listing it reports what is wrong with it."""
        if MARK in path:  # it would have to be downloaded
            return True
        if not os.path.isfile(path):
            return False
        if not split_path(path).type.is_media:  # it costs time to open
            return True
        try:
            container, _, _ = self._open(path)
        except (OSError, UsageError):
            return True
        return container.has_inputs(self.options)

    def is_container(self, folder: str) -> bool:
        return True

    def holds_images_only(self, folder: str) -> bool:
        return split_path(folder).type.is_media

    def columns(self, path: str) -> Columns:
        container, _, name = self._open(path)
        return container.columns(name)

    def real_path(self, path: str) -> str:
        split = split_path(path)
        return posixpath.join(self._outer(path).real_path(split.container), split.name).rstrip("/")
