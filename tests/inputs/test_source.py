"""Inputs are read through `FileSource` alone: files in memory are listed, decoded and hashed as those on the disk."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import pytest

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.image import load_image
from prunesid_cli.inputs.listing import OTHER, Listing
from prunesid_cli.inputs.source import LOCAL, FileSource, FileStatus, FolderEntry
from prunesid_cli.inputs.video.load import hash_clip, is_clip_file
from tests import hostile

PICTURE = hostile.encoded(hostile.landmark(), "PNG")
CLIP = b"\x1aE\xdf\xa3" + bytes(100)
CONTENTS = {"b.png": PICTURE, "deep/er/a.png": PICTURE, "deep/clip.mkv": CLIP, "deep/notes.txt": b"text"}


class MemoryFiles(FileSource):
    """Files by their path, without links, such as members of an archive."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents

    def list(self, folder: str) -> Iterator[FolderEntry]:
        prefix = f"{folder}/" if folder else ""
        below = [path.removeprefix(prefix) for path in self.contents if path.startswith(prefix)]
        for name in dict.fromkeys(path.partition("/")[0] for path in below):
            yield FolderEntry(name, is_folder=name not in below, is_link=False)

    def stat(self, path: str) -> FileStatus:
        if path in self.contents:
            return FileStatus(len(self.contents[path]), mtime_ns=0, is_file=True, is_folder=False)
        if not self.exists(path):
            raise FileNotFoundError(errno.ENOENT, "No such file", path)
        return FileStatus(0, mtime_ns=0, is_file=False, is_folder=True)

    def open(self, path: str) -> BinaryIO:
        return BytesIO(self.contents[path])

    def exists(self, path: str, follow_links: bool = True) -> bool:
        return path in self.contents or any(name.startswith(f"{path}/") for name in self.contents)

    def real_path(self, path: str) -> str:
        return path


def on_disk(folder: Path) -> FileSource:
    for name, data in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return LOCAL


@pytest.fixture(params=["memory", "disk"])
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileSource:
    monkeypatch.chdir(tmp_path)
    return MemoryFiles(CONTENTS) if request.param == "memory" else on_disk(tmp_path)


def test_files_are_listed(files: FileSource) -> None:
    listing = Listing(["b.png", "deep", "**/*.png", "*.gif"], files=files)
    listed = list(listing)
    assert [file.source for file in listed] == ["b.png", "deep/clip.mkv", "deep/er/a.png", "*.gif"]
    assert [bool(file.error) for file in listed] == [False, False, False, True]
    assert listing.skipped == {OTHER: 1, "repeat": 2}


def test_files_are_read(files: FileSource) -> None:
    media = load_image("deep/er/a.png", files)
    assert (media.size, media.digest) == ((96, 64), hashlib.sha256(PICTURE).hexdigest())
    assert is_clip_file("deep/clip.mkv", files)
    assert not is_clip_file("b.png", files)
    assert hash_clip("deep/clip.mkv", files) == hashlib.sha256(CLIP).hexdigest()
    with pytest.raises(MediaError, match="missing.png: no such file"):
        load_image("missing.png", files)
    with pytest.raises(MediaError, match="deep: a folder, not a regular file"):
        load_image("deep", files)


def test_local_status(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    os.utime(path, ns=(5, 7))
    assert LOCAL.stat(str(path)) == FileStatus(len(PICTURE), mtime_ns=7, is_file=True, is_folder=False)
    (tmp_path / "link").symlink_to("nowhere")
    assert not LOCAL.exists(str(tmp_path / "link"))
    assert LOCAL.exists(str(tmp_path / "link"), follow_links=False)
    assert sorted(LOCAL.list(str(tmp_path))) == [
        FolderEntry("a.png", is_folder=False, is_link=False), FolderEntry("link", is_folder=False, is_link=True),
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_opening_a_pipe_does_not_block(tmp_path: Path) -> None:
    """Even if a pipe has replaced the file since it was looked at."""
    os.mkfifo(tmp_path / "pipe")
    with LOCAL.open(str(tmp_path / "pipe")) as file:
        assert file.read() == b""
