"""Inputs behind URIs: the same tokens as of local files, whatever fails for a while."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs import uri_files
from prunesid_cli.inputs.files import FILES
from prunesid_cli.inputs.glob_paths import expand_glob
from prunesid_cli.inputs.listing import Listing
from tests.caches import items_by_source
from tests.conftest import PROMPT, Run


class FlakyFiles(LocalFileSystem):  # type: ignore[misc]
    """Local files behind `flaky://`. Each call about a file fails as often as `failures` says before it works."""

    protocol = "flaky"
    failures = 0
    counts = Counter[tuple[str, str]]()

    def _fail(self, what: str, path: str) -> None:
        self.counts[what, path] += 1
        if self.counts[what, path] % (self.failures + 1):
            raise TimeoutError("the network is gone")

    def info(self, path: str, **options: Any) -> Any:
        self._fail("info", path)
        return super().info(path.removeprefix("flaky://"), **options)

    def cat_file(self, path: str, *args: Any, **options: Any) -> Any:
        self._fail("cat", path)
        return super().cat_file(path.removeprefix("flaky://"), *args, **options)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uri_files, "FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(uri_files, "MEMORY_SECONDS", -1.0)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[FlakyFiles]:
    fsspec.register_implementation("flaky", FlakyFiles, clobber=True)
    monkeypatch.setattr(FlakyFiles, "failures", 0)
    monkeypatch.setattr(FlakyFiles, "counts", Counter())
    return FlakyFiles


def test_uris_are_listed_and_read(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("b.png", "a.png", "deep/c.jpg", "notes.txt"):
        (tmp_path / "in" / name).write_bytes(name.encode())
    uri = f"file://{tmp_path}/in"
    assert [file.source for file in Listing([uri])] == [f"{uri}/{name}" for name in ("a.png", "b.png", "deep/c.jpg")]
    assert [file.source for file in Listing([f"{uri}/**/*.jpg"])] == [f"{uri}/deep/c.jpg"]
    assert list(expand_glob(f"{uri}/?.png")) == [f"{uri}/a.png", f"{uri}/b.png"]
    with FILES.open(f"{uri}/a.png") as file:
        assert file.read() == b"a.png"
    status = FILES.stat(f"{uri}/a.png")
    local = FILES.stat(str(tmp_path / "in" / "a.png"))
    assert (status.size, status.is_file) == (local.size, True)
    (missing,) = Listing([f"{uri}/nothing.png"])
    assert missing.error and "no such file" in missing.error.problem


def test_versions_differ_with_the_etag() -> None:
    versions = {uri_files._version({"ETag": tag, "LastModified": 5}) for tag in ("a", "b")}
    assert len(versions) == 2
    assert max(versions) < 10**18 > 0
    assert uri_files._version({"mtime": 1.5}) == 1_500_000_000
    assert uri_files._version({}) == 0


def test_compress_and_ask_read_uris(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """In workers, and again with nothing to do."""
    folder = tmp_path / "in"
    shutil.copytree(pictures[0].parent, folder)
    (folder / "bad.png").write_bytes(b"no image")
    for name, path in (("local", folder), ("uri", f"file://{folder}")):
        assert run("compress", path, "--out", tmp_path / name).code == 3
    local, remote = (items_by_source(tmp_path / name) for name in ("local", "uri"))
    assert [source.removeprefix("file://") for source in remote] == list(local)
    assert [item.slots for item in remote.values()] == [item.slots for item in local.values()]
    assert [item.digest for item in remote.values()] == [item.digest for item in local.values()]
    again = run("compress", f"file://{folder}", "--out", tmp_path / "uri")
    assert "10 already in the cache" in again.err
    asked = [run("ask", path, PROMPT).out for path in (pictures[0], f"file://{pictures[0]}")]
    assert asked[0] == asked[1] != ""


@pytest.mark.parametrize(("failures", "code"), [(uri_files.TRIES - 1, 0), (10_000, 3)])
def test_a_network_that_is_gone(
    failures: int, code: int, run: Run, pictures: list[Path], tmp_path: Path, flaky: type[FlakyFiles]
) -> None:
    """If it returns soon, all inputs are read. Else they are listed as failed, and the next run tries them again."""
    flaky.failures = failures
    uris = [f"flaky://{picture}" for picture in pictures[:3]]
    ran = run("compress", *uris, "--out", tmp_path / "cache", "--workers", 0)
    assert ran.code == code, ran.err
    if code:
        assert ran.err.count("not read in 4 tries: TimeoutError: the network is gone") == 3
        flaky.failures = 0
        assert run("compress", *uris, "--out", tmp_path / "cache", "--workers", 0).code == 0
    assert len(run("cache", "ls", tmp_path / "cache", "--json").records) == 3


def test_what_cannot_be_read_is_refused(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nosuch:// cannot be read"):
        FILES.stat("nosuch://a/b.png")
    ran = run("compress", "nosuch://a/b.png", "--out", tmp_path / "cache")
    assert (ran.code, "nosuch:// cannot be read" in ran.err) == (2, True), ran.err
    ran = run("compress", pictures[0], "--out", "s3://bucket/cache")
    assert (ran.code, "a cache is a local folder" in ran.err) == (2, True), ran.err
