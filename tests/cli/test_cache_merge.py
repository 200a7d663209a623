"""`prunesid cache merge`: caches of several machines become one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from prunesid_cli import __version__
from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import STORES, CacheWriter, open_cache
from tests.caches import RUN, items_by_source, make_wide_entry, read_files, write_cache
from tests.conftest import Run

NAMES = [f"{folder}/{number}.png" for folder in ("a", "a-b", "b") for number in range(5)]


@pytest.mark.parametrize("store", STORES)
def test_merged_parts_equal_one_run(run: Run, tmp_path: Path, store: str) -> None:
    settings = replace(RUN, store=store)
    parts = [
        write_cache(tmp_path / f"{number}", map(make_wide_entry, NAMES[number::3]), run=settings, shard_items=2)
        for number in range(3)
    ]
    before = [read_files(part) for part in parts]
    result = run("cache", "merge", *parts, "--out", tmp_path / "all")
    assert (result.code, result.out) == (0, "")
    assert "merged 15 items of 3 caches" in result.err
    assert [item.source for _, item in open_cache(tmp_path / "all").items()] == NAMES
    assert [read_files(part) for part in parts] == before
    assert run("cache", "verify", tmp_path / "all").out == "15 items good, 0 faults\n"

    writer = CacheWriter(tmp_path / "one run", settings, __version__)
    for name in NAMES:
        writer.add(make_wide_entry(name))
    writer.close()
    assert read_files(tmp_path / "all") == read_files(tmp_path / "one run")
    result = run("cache", "merge", *parts, "--out", tmp_path / "all", "--json")
    assert result.records == [{"merged": 0, "held": 15}]
    assert read_files(tmp_path / "all") == read_files(tmp_path / "one run")


def test_the_last_of_overlapping_parts_counts(run: Run, tmp_path: Path) -> None:
    first, second = make_wide_entry("x.png"), make_wide_entry("x.png", version=1)
    parts = [
        write_cache(tmp_path / "1", [first]),
        write_cache(tmp_path / "2", [second, make_wide_entry("y.png")]),
    ]
    assert run("cache", "merge", *parts, "--out", tmp_path / "all", "--json").records == [{"merged": 2, "held": 0}]
    assert items_by_source(tmp_path / "all")["x.png"].digest == second.provenance.digest


def test_failures_are_merged_unless_another_part_has_the_item(run: Run, tmp_path: Path) -> None:
    parts = [write_cache(tmp_path / name, [make_wide_entry(f"{name}.png")]) for name in ("x", "y")]
    writer = CacheWriter(parts[0], RUN, "0.0")
    for name in ("y.png", "z.png"):
        writer.fail(name, CacheError(f"{name}: bad", "mend it"))
    writer.close()
    run("cache", "merge", *parts, "--out", tmp_path / "all")
    assert run("cache", "ls", tmp_path / "all", "--failed").out == "z.png\tbad\n"


def test_caches_that_cannot_be_merged_are_refused(run: Run, tmp_path: Path) -> None:
    first = write_cache(tmp_path / "1", map(make_wide_entry, NAMES), shard_items=4)
    other = write_cache(tmp_path / "2", [make_wide_entry("y.png")], run=replace(RUN, keep="64"))
    result = run("cache", "merge", first, other, "--out", tmp_path / "all")
    assert (result.code, f"{other} holds a cache made with keep 64, not 11%" in result.err) == (1, True)
    assert run("cache", "merge", first, tmp_path / "none", "--out", tmp_path / "all").code == 1
    assert "into itself" in run("cache", "merge", first, "--out", first).err
    (first / "prunesid-00001.safetensors").unlink()
    assert "missing" in run("cache", "merge", first, "--out", tmp_path / "all").err
    shard = other / "prunesid-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert "damaged" in run("cache", "merge", other, "--out", tmp_path / "all").err
    assert not list((tmp_path / "all").glob("prunesid-0*"))
