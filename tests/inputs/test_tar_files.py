"""Tar files as folders: their members are inputs, also those of damaged files that can still be read."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from prunesid_cli.inputs.containers import open_container
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.glob_paths import expand_ranges
from prunesid_cli.inputs.listing import OUTSIDE, Listing
from prunesid_cli.inputs.sharding import Partition
from prunesid_cli.inputs.source import FolderEntry
from tests.cli.helpers import cache_files
from tests.cli.processes import running
from tests.conftest import PROMPT, Run
from tests.films import film
from tests.models.tiny import write_checkpoint

LONG_AGO = 10**9


def write_tar(path: Path, members: Mapping[str, bytes], **options: object) -> Path:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


@pytest.fixture
def scenes(pictures: list[Path]) -> dict[str, bytes]:
    return {f"{number:06d}.png": path.read_bytes() for number, path in enumerate(pictures)}


def sources(*paths: object) -> list[str]:
    return [file.source for file in Listing(map(str, paths))]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_read_in_place(format: int, tmp_path: Path) -> None:
    """Of all formats, with long and other names, in folders; links, devices and folders are no members."""
    members = {"b.png": b"first", "a/c d.jpg": b"\0" * 1000, "a/ü.png": b"", "a/b/" + "n" * 90 + ".png": b"x"}
    if format != tarfile.USTAR_FORMAT:
        members["long/" + "m" * 200 + ".png"] = b"y" * 3000
    path = write_tar(tmp_path / "x.tar", members, format=format)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        tar.addfile(link)
        folder = tarfile.TarInfo("empty.png")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    assert sorted(sources(path)) == sorted(f"{path}/{name}" for name in members)
    assert sources(tmp_path) == sources(path)
    for name, data in members.items():
        with FILES.open(f"{path}/{name}") as file:
            assert file.read() == data
            file.seek(-1 if data else 0, io.SEEK_END)
            assert file.read() == data[-1:]
        assert FILES.stat(f"{path}/{name}").size == len(data)
    with pytest.raises(FileNotFoundError):
        FILES.stat(f"{path}/nothing.png")
    assert FILES.real_path(f"{tmp_path}/./x.tar/b.png") == f"{tmp_path}/x.tar/b.png"
    assert FolderEntry("x.tar", is_folder=True, is_link=False) in list(FILES.list(str(tmp_path)))


def test_names_that_lead_out_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "x.tar", {"../../out.png": b"1", "a/../../b.png": b"2", "/abs.png": b"3", "./ok.png": b"4"}
    )
    skipped = list[tuple[str, str]]()
    listing = Listing([str(path)], on_skip=lambda reason, name: skipped.append((reason, name)))
    assert [(file.source, file.error) for file in listing] == [(f"{path}/abs.png", None), (f"{path}/ok.png", None)]
    assert skipped == [(OUTSIDE, f"{path}/out.png"), (OUTSIDE, f"{path}/b.png")] and listing.skipped[OUTSIDE] == 2


def test_the_last_of_several_members_with_one_name_counts(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": b"old"})
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("a.png")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"new"))
    assert sources(path) == [f"{path}/a.png"]
    with FILES.open(f"{path}/a.png") as file:
        assert file.read() == b"new"


def test_a_file_that_is_no_tar_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar file" * 100)
    (file,) = Listing([str(tmp_path)])
    assert file.error and "x.tar: damaged after byte 0" in file.error.problem
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar" / "a.png").write_bytes(b"1")
    assert sources(tmp_path / "folder.tar") == [f"{tmp_path}/folder.tar/a.png"]


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.97])
def test_a_cut_file_gives_what_is_left(cut: float, run: Run, scenes: dict[str, bytes], tmp_path: Path) -> None:
    """The file is reported, listed as failed, and read again when it is whole."""
    whole = write_tar(tmp_path / "whole.tar", scenes)
    path, cache = tmp_path / "x.tar", tmp_path / "cache"
    path.write_bytes(whole.read_bytes()[: int(cut * whole.stat().st_size)])
    os.utime(path, (LONG_AGO, LONG_AGO))
    ran = run("compress", path, "--out", cache, "--json")
    assert (ran.code, "x.tar" in ran.err) == (3, True), ran.err
    done = [record["source"] for record in ran.records if "digest" in record]
    assert len(done) < len(scenes)
    assert done == [f"{path}/{name}" for name in scenes][: len(done)]
    assert str(path) in run("cache", "ls", cache, "--failed").out
    shutil.copy(whole, path)
    again = run("compress", path, "--out", cache)
    assert (again.code, run("cache", "ls", cache, "--failed").out) == (0, ""), again.err
    assert run("cache", "verify", cache).code == 0


def test_members_are_inputs_like_files(run: Run, scenes: dict[str, bytes], tmp_path: Path) -> None:
    """The same tokens and answers as of files, with other commands too; a bad member fails alone."""
    (tmp_path / "files").mkdir()
    for name, data in scenes.items():
        (tmp_path / "files" / name).write_bytes(data)
    tar = write_tar(tmp_path / "shard.tar", {**scenes, "bad.png": b"no image", "notes.txt": b"notes"})
    for name, path in (("tar", tar), ("files", tmp_path / "files")):
        ran = run("compress", path, "--out", tmp_path / name, "--dynamic", "-k", 40)
        assert ran.code == (3 if name == "tar" else 0), ran.err
    answers = [run("answer", tmp_path / name, PROMPT).records for name in ("tar", "files")]
    assert [record["answer"] for record in answers[0]] == [record["answer"] for record in answers[1]]
    assert [record["kept"] for record in answers[0]] == [record["kept"] for record in answers[1]]
    assert f"{tar}/bad.png" in run("cache", "ls", tmp_path / "tar", "--failed").out
    assert len(run("answer", tmp_path / "tar", PROMPT, "--where", "*/00000[12].png").records) == 2
    again = run("compress", tar, "--out", tmp_path / "tar", "--dynamic", "-k", 40)
    assert "10 already in the cache" in again.err
    retried = run("compress", tar, "--out", tmp_path / "tar", "--dynamic", "-k", 40, "--retry-failed", "--json")
    assert [record["source"] for record in retried.records] == [f"{tar}/bad.png"]
    asked = run("ask", f"{tar}/000003.png", PROMPT, "-k", 40)
    assert asked.code == 0, asked.err
    kept = run("cache", "gc", tmp_path / "tar", "--dry-run").err
    assert "would remove 0 missing inputs, 0 earlier versions: " in kept
    tar.unlink()
    assert "10 missing inputs" in run("cache", "gc", tmp_path / "tar", "--dry-run").err


def test_a_changed_tar_file_is_read_again(run: Run, scenes: dict[str, bytes], tmp_path: Path) -> None:
    """A member that did not change is not encoded again."""
    tar = write_tar(tmp_path / "x.tar", {"a.png": scenes["000000.png"], "b.png": scenes["000001.png"]})
    assert run("compress", tar, "--out", tmp_path / "cache").code == 0
    write_tar(tar, {"a.png": scenes["000000.png"], "b.png": scenes["000002.png"]})
    os.utime(tar, (LONG_AGO + 5, LONG_AGO + 5))
    ran = run("compress", tar, "--out", tmp_path / "cache", "--json")
    assert ["held" in record for record in ran.records] == [True, False]


def test_clips_in_tar_files(run: Run, tmp_path: Path) -> None:
    internvl, path = write_checkpoint("internvl", tmp_path / "model"), film(tmp_path / "clip.mp4")
    tar = write_tar(tmp_path / "x.tar", {"clip.mp4": path.read_bytes()})
    first, second = (
        run("compress", clip, "-m", internvl, "--frames", 4, "--out", tmp_path / clip.stem, "--json").records[0]
        for clip in (path, tar)
    )
    assert (first["digest"], first["kept"]) == (second["digest"], second["kept"])


@pytest.mark.slow
def test_a_killed_run_is_finished(run: Run, scenes: dict[str, bytes], tmp_path: Path) -> None:
    """In the middle of a tar file."""
    tars = [write_tar(tmp_path / f"{number:03d}.tar", scenes) for number in range(3)]
    pattern = f"{tmp_path}/{{000..002}}.tar"
    with running("compress", pattern, "--out", tmp_path / "cache", "--json", "--batch-size", "1") as process:
        assert process.stdout
        for _ in range(14):
            json.loads(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
    assert run("compress", pattern, "--out", tmp_path / "cache").code == 0
    assert run("cache", "verify", tmp_path / "cache").code == 0
    assert run("compress", *tars, "--out", tmp_path / "plain").code == 0
    listed = [run("cache", "ls", tmp_path / name, "--json").records for name in ("cache", "plain")]
    assert listed[0] == listed[1] != []
    assert cache_files(tmp_path / "plain")


def test_number_ranges(tmp_path: Path) -> None:
    assert list(expand_ranges("a-{08..11}.tar")) == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert list(expand_ranges("{1..2}/{9..10}")) == ["1/9", "1/10", "2/9", "2/10"]
    assert list(expand_ranges("{3..1}")) == ["3", "2", "1"]
    assert list(expand_ranges("{a..c}.tar")) == ["{a..c}.tar"]
    literal = tmp_path / "{1..2}.png"
    literal.write_bytes(b"")
    assert list(expand_ranges(str(literal))) == [str(literal)]


def test_a_partition_takes_whole_tar_files() -> None:
    parts = [Partition(number, 4) for number in (1, 2, 3, 4)]
    for tar in range(20):
        takers = {part.number for part in parts for n in range(30) if part.takes(f"in/{tar:03d}.tar/{n}.png")}
        assert len(takers) == 1


def test_an_index_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", {f"{number}.png": b"1" for number in range(50)})
    before = open_container.cache_info().misses
    for source in sources(path):
        FILES.stat(source)
        FILES.open(source).close()
    assert open_container.cache_info().misses == before + 1
