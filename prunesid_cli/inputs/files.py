"""All files that a path can name: `FILES` passes each call to the source that the path belongs to."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from prunesid_cli.inputs.source import LOCAL, FileSource, FileStatus, FolderEntry
from prunesid_cli.inputs.tar_files import SUFFIX, TarFiles, split_path
from prunesid_cli.inputs.uri_files import MARK, UriFiles

TAR, URIS = TarFiles(LOCAL), UriFiles()


class Files:
    """Files on the local disk, members of tar files there, and files behind URIs; see `FileSource`."""

    def source_of(self, path: str) -> FileSource:
        """The source that a path belongs to."""
        if MARK in path:
            return URIS
        if SUFFIX in path:
            tar, _, _ = split_path(path)
            if tar and os.path.isfile(tar):
                return TAR
        return LOCAL

    def list(self, folder: str) -> Iterator[FolderEntry]:
        source = self.source_of(folder)
        for entry in source.list(folder):
            is_tar = (
                source is LOCAL and entry.name.endswith(SUFFIX) and os.path.isfile(os.path.join(folder, entry.name))
            )
            yield FolderEntry(entry.name, is_folder=True, is_link=False) if is_tar else entry

    def stat(self, path: str) -> FileStatus:
        return self.source_of(path).stat(path)

    def open(self, path: str) -> BinaryIO:
        return self.source_of(path).open(path)

    def exists(self, path: str, follow_links: bool = True) -> bool:
        return self.source_of(path).exists(path, follow_links)

    def real_path(self, path: str) -> str:
        return self.source_of(path).real_path(path)

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


FILES = Files()
