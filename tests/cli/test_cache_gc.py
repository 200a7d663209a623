"""`prunesid cache gc`: inputs that are gone and earlier versions are removed, unless too much is gone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import CacheWriter, open_cache, read_tokens
from tests.caches import RUN, items_by_source, make_wide_entry, read_files, write_cache
from tests.conftest import Run

NAMES = [f"{folder}/{number}.png" for folder in ("a", "a-b", "b") for number in range(5)]


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where compress was called."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_inputs_of_which_nothing_is_known_are_kept(run: Run, inputs: Path) -> None:
    """As on a failing drive: the system gives another error than that there is no such file."""
    cache = write_cache(inputs / "c", [make_wide_entry(name) for name in NAMES])
    (inputs / NAMES[3]).unlink()
    (inputs / NAMES[3]).symlink_to(inputs / NAMES[3])
    (inputs / NAMES[4]).unlink()
    for _ in range(2):
        result = run("cache", "gc", cache)
        assert (result.code, f"cannot tell whether {NAMES[3]} is gone: Too many levels" in result.err) == (3, True)
        assert sorted(items_by_source(cache)) == sorted(name for name in NAMES if name != NAMES[4])


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read")
@pytest.mark.parametrize("name", ["prunesid-00000.safetensors", "prunesid-index.safetensors", "failures.jsonl"])
def test_a_file_of_the_cache_that_cannot_be_read_is_one_error(run: Run, inputs: Path, name: str) -> None:
    """To read /proc/self/mem from its start is an input/output error."""
    cache = write_cache(inputs / "c", [make_wide_entry(name) for name in NAMES])
    (inputs / NAMES[4]).unlink()
    (cache / name).unlink(missing_ok=True)
    (cache / name).symlink_to("/proc/self/mem")
    result = run("cache", "gc", cache)
    assert "bug" not in result.err and (result.code == 0 or result.err.startswith("error: ")), result.err


def test_gone_inputs_and_earlier_versions_are_removed(run: Run, inputs: Path) -> None:
    changed = (NAMES[1], NAMES[14])
    entries = [make_wide_entry(name) for name in NAMES] + [make_wide_entry(name, version=1) for name in changed]
    cache = write_cache(inputs / "c", entries, shard_items=4)
    writer = CacheWriter(cache, RUN, "0.0")
    for name in ("gone.png", NAMES[2]):
        writer.fail(name, CacheError(f"{name}: bad", "mend it"))
    writer.close()
    for name in (NAMES[0], *NAMES[4:8]):
        (inputs / name).unlink()
    before = read_files(cache)
    dry_run = run("cache", "gc", cache, "--dry-run", "--json")
    item_bytes = 7 * 200 * 4
    assert dry_run.records == [{"gone": 5, "outdated": 2, "failures": 1, "bytes": 7 * item_bytes}]
    assert read_files(cache) == before
    result = run("cache", "gc", cache)
    assert (result.code, "removed 5 missing inputs, 2 earlier versions" in result.err) == (0, True)
    left = [name for number, name in enumerate(NAMES) if number not in (0, 4, 5, 6, 7)]
    assert sorted(items_by_source(cache)) == sorted(left)
    assert items_by_source(cache)[NAMES[1]].digest == make_wide_entry(NAMES[1], version=1).provenance.digest
    for shard, item in open_cache(cache).items():
        (tokens,) = read_tokens(shard, [item])
        version = int(item.source in changed)
        assert torch.equal(tokens.tokens, make_wide_entry(item.source, version).tokens.tokens)
        entry = open_cache(cache, with_stamps=True).index.find(item.source)
        assert entry and entry.stamp == (len(item.source), version)
    assert run("cache", "verify", cache).out == "10 items good, 0 faults\n"
    assert [record["source"] for record in open_cache(cache).failures()] == [NAMES[2]]
    assert run("cache", "gc", cache, "--json").records == [{"gone": 0, "outdated": 0, "failures": 0, "bytes": 0}]
    write_cache(cache, [make_wide_entry(NAMES[0])], shard_items=4)
    assert run("cache", "verify", cache).out == "11 items good, 0 faults\n"


def test_failures_of_gone_inputs_are_removed(run: Run, llava: Path, inputs: Path) -> None:
    """Also from a cache that never held anything else. What is left is a cache still."""
    assert run("compress", "imsg", "a/*.tif", "--out", "t", "-m", llava).code == 3
    assert len(run("cache", "ls", "t", "--failed").out.splitlines()) == 2
    assert run("cache", "gc", "t", "--dry-run", "--json").records[0]["failures"] == 2
    assert run("cache", "info", "t", "--json").records[0]["failed"] == 2
    Path("t/prunesid-index.safetensors").unlink()  # as after an interrupted run
    result = run("cache", "gc", "t")
    removed = "0 missing inputs, 0 earlier versions, 2 failures of missing inputs"
    assert (result.code, removed in result.err) == (0, True)
    assert run("cache", "gc", "t", "--json").records[0]["failures"] == 0
    assert (run("cache", "ls", "t", "--failed").out, run("cache", "ls", "t").code) == ("", 0)
    assert run("cache", "info", "t", "--json").records[0]["failed"] == 0
    assert run("cache", "verify", "t").out == "0 items good, 0 faults\n"


def test_failures_are_cleared_when_the_inputs_are_repaired(
    run: Run, llava: Path, inputs: Path, pictures: list[Path]
) -> None:
    command = ("compress", "b", "later", "c/*.tif", "--out", "t", "-m", llava)
    shutil.copy(pictures[0], "b/0.png")
    Path("b/1.png").unlink()
    Path("b/1.png").symlink_to("nowhere.png")
    assert run(*command).code == 3
    assert len(run("cache", "ls", "t", "--failed").out.splitlines()) == 6
    Path("later").mkdir()
    Path("c").mkdir()
    shutil.copy(pictures[1], "c/1.tif")
    for number, picture in enumerate(pictures[2:6], 1):
        Path(f"b/{number}.png").unlink()
        shutil.copy(picture, f"b/{number}.png")
    result = run(*command)
    assert (result.code, run("cache", "ls", "t", "--failed").out) == (0, ""), result.err
    assert run("cache", "info", "t", "--json").records[0]["failed"] == 0


def test_gc_refuses_if_most_inputs_are_gone(run: Run, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write_cache(inputs / "c", map(make_wide_entry, NAMES))
    monkeypatch.chdir(inputs / "a")
    result = run("cache", "gc", cache)
    assert (result.code, "15 of the 15 inputs" in result.err, "--force" in result.err) == (2, True, True)
    dry_run = run("cache", "gc", cache, "--dry-run", "--json")
    assert (dry_run.code, dry_run.records[0]["gone"]) == (0, 15)
    assert "warning: 15 of the 15 inputs" in dry_run.err
    monkeypatch.chdir(inputs)
    for name in NAMES[:7]:
        (inputs / name).unlink()
    assert run("cache", "gc", cache, "--dry-run").code == 0
    (inputs / NAMES[8]).unlink()
    assert run("cache", "gc", cache).code == 2
    assert len(open_cache(cache)) == 15
    assert run("cache", "gc", cache, "--force").code == 0
    assert run("cache", "verify", cache).out == "7 items good, 0 faults\n"


@pytest.mark.parametrize(("count", "code"), [(9, 0), (10, 2)])
@pytest.mark.parametrize("is_absolute", [False, True])
def test_gc_refuses_if_a_drive_may_be_missing(run: Run, inputs: Path, count: int, code: int, is_absolute: bool) -> None:
    drives = [inputs / "mnt" / "1", inputs / "mnt" / "2"]
    for drive, num_files in zip(drives, (15, count), strict=True):
        drive.mkdir(parents=True)
        for number in range(num_files):
            (drive / f"{number}.png").touch()
    paths = [path for drive in drives for path in drive.iterdir()]
    names = [str(path if is_absolute else path.relative_to(inputs)) for path in paths]
    cache = write_cache(inputs / "c", map(make_wide_entry, names))
    shutil.rmtree(drives[1])
    result = run("cache", "gc", cache)
    is_refused = f"none of the 10 inputs of {cache} in {drives[1]} is where it was" in result.err
    assert (result.code, is_refused) == (code, code == 2)
    assert len(open_cache(cache)) == (25 if code else 15)


def test_inputs_are_removed_by_name(run: Run, inputs: Path) -> None:
    """With earlier versions and failures; what is left can be read, and a name with glob characters is a name."""
    odd = "b/[1].png"
    entries = [make_wide_entry(name) for name in (*NAMES, odd)] + [make_wide_entry(NAMES[1], version=1)]
    cache = write_cache(inputs / "c", entries, shard_items=4)
    writer = CacheWriter(cache, RUN, "0.0")
    writer.fail("a/bad.png", CacheError("a/bad.png: bad", "mend it"))
    writer.close()
    before = read_files(cache)
    plan = run("cache", "rm", cache, "a/*", "--dry-run", "--json").records[0]
    assert (plan["removed"], plan["failures"], read_files(cache)) == (5, 1, before)
    refused = run("cache", "rm", cache, "nothing*")
    assert (refused.code, read_files(cache)) == (2, before)
    tokens = {
        name: next(read_tokens(shard, [item])).tokens
        for shard, item in open_cache(cache).items()
        for name in [item.source]
    }
    assert run("cache", "rm", cache, "a/*", odd, "4.png").code == 0
    left = [name for name in NAMES if not name.startswith("a/") and not name.endswith("/4.png")]
    assert sorted(items_by_source(cache)) == sorted(left)
    for shard, item in open_cache(cache).items():
        assert torch.equal(next(read_tokens(shard, [item])).tokens, tokens[item.source])
    assert run("cache", "verify", cache).code == 0
    assert run("cache", "ls", cache, "--failed").out == ""
    assert all((inputs / name).exists() for name in NAMES)


def test_moved_inputs_are_not_encoded_again(run: Run, pictures: list[Path], tmp_path: Path) -> None:
    """With their stamps; a name that only begins alike is another one."""
    folder, cache = tmp_path / "in", tmp_path / "cache"
    shutil.copytree(pictures[0].parent, folder / "a")
    shutil.copytree(pictures[0].parent, folder / "ab")
    for path in folder.rglob("*.png"):
        os.utime(path, (10**9, 10**9))
    (folder / "a" / "bad.png").write_bytes(b"no image")
    assert run("compress", folder, "--out", cache, "--shard-items", 4).code == 3
    tokens = {item.source: next(read_tokens(shard, [item])).tokens for shard, item in open_cache(cache).items()}
    (folder / "a").rename(tmp_path / "moved")
    assert run("cache", "relocate", cache, f"{folder}/a/", tmp_path / "moved").code == 0
    assert run("cache", "ls", cache, "--failed").out == ""
    found = {item.source: next(read_tokens(shard, [item])).tokens for shard, item in open_cache(cache).items()}
    expected = {source.replace(f"{folder}/a/", f"{tmp_path}/moved/"): value for source, value in tokens.items()}
    assert found.keys() == expected.keys() and len(found) == 20
    assert all(torch.equal(found[source], expected[source]) for source in found)
    (tmp_path / "moved" / "bad.png").unlink()
    again = run("compress", folder / "ab", tmp_path / "moved", "--out", cache, "--shard-items", 4)
    assert "nothing to do: 20 already in the cache" in again.err
    assert run("cache", "verify", cache).code == 0
    before = read_files(cache)
    clash = run("cache", "relocate", cache, tmp_path / "moved", folder / "ab")
    assert (clash.code, "is in the cache already" in clash.err, read_files(cache)) == (2, True, before)
    assert run("cache", "relocate", cache, "nowhere", "elsewhere").code == 2
