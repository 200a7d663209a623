"""All files that a path can name: `Files` passes each call to the source that the path belongs to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from prunesid_cli.inputs.containers import (
    DEFAULT_OPTIONS,
    ContainerFiles,
    ContainerOptions,
    is_container_name,
    split_path,
)
from prunesid_cli.inputs.source import LOCAL, FileSource, FileStatus, FolderEntry
from prunesid_cli.inputs.uri_files import MARK, UriFiles
from prunesid_cli.types import Columns

URIS = UriFiles()


class Files:
    """Files on the local disk, what is in containers there, and files behind URIs; see `FileSource`."""

    def __init__(self, options: ContainerOptions = DEFAULT_OPTIONS) -> None:
        """`options`: how containers are listed. Paths that were listed have all that is needed to read them."""
        self.containers = ContainerFiles(LOCAL, URIS, options)

    def source_of(self, path: str) -> FileSource:
        """The source that a path belongs to."""
        container, outer = split_path(path).container, URIS if MARK in path else LOCAL
        return self.containers if container and _is_file(container) else outer

    def list(self, folder: str) -> Iterator[FolderEntry]:
        source = self.source_of(folder)
        for entry in source.list(folder):
            is_container = source is not self.containers and not entry.is_folder and is_container_name(entry.name)
            if is_container and self.containers.has_inputs(os.path.join(folder, entry.name)):
                yield FolderEntry(entry.name, is_folder=True, is_link=False)
            else:
                yield entry

    def stat(self, path: str) -> FileStatus:
        return self.source_of(path).stat(path)

    def open(self, path: str) -> BinaryIO:
        return self.source_of(path).open(path)

    def exists(self, path: str, follow_links: bool = True) -> bool:
        return self.source_of(path).exists(path, follow_links)

    def real_path(self, path: str) -> str:
        return self.source_of(path).real_path(path)

    def columns(self, path: str) -> Columns:
        return self.source_of(path).columns(path)

    def is_container(self, folder: str) -> bool:
        return self.source_of(folder).is_container(folder)

    def holds_images_only(self, folder: str) -> bool:
        return self.source_of(folder).holds_images_only(folder)

    @contextmanager
    def local_copy(self, path: str) -> Iterator[str]:
        """A file on the local disk with the contents of a file: itself, or a copy that is removed afterwards."""
        if self.source_of(path) is LOCAL:
            yield path
            return
        with self.open(path) as file, NamedTemporaryFile(suffix=os.path.splitext(path)[1]) as copy:
            shutil.copyfileobj(file, copy, 1 << 20)
            copy.flush()
            yield copy.name


def _is_file(path: str) -> bool:
    return URIS.is_file(path) if MARK in path else os.path.isfile(path)


FILES = Files()
