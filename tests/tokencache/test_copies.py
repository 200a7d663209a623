"""Inputs with the same contents: their tokens are stored once, and each path is an item."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import CacheWriter, Entry, ShardLimits, open_cache, read_header, read_tokens, verify_cache
from prunesid_cli.tokencache import content_index as content_index_module
from prunesid_cli.tokencache.content_index import ContentIndex, RepeatedDigests
from prunesid_cli.tokencache.gc import collect_garbage, find_matching, relocate
from prunesid_cli.tokencache.index_file import STAMPS
from prunesid_cli.tokencache.index_table import ShardPosition
from prunesid_cli.tokencache.merge import merge
from tests.caches import RUN, edit_header, items_by_source, make_wide_entry, read_files, write_cache


def copy_of(entry: Entry, source: str) -> Entry:
    return replace(entry, provenance=replace(entry.provenance, source=source))


ORIGINALS = [make_wide_entry(f"a/{number}.png") for number in range(5)]
COPIES = [copy_of(entry, entry.source.replace("a/", "b/")) for entry in ORIGINALS]


def check_tokens(folder: Path, entries: list[Entry]) -> None:
    """Every byte of a cache is right, and it has these entries and no others."""
    assert verify_cache(folder) == (len(entries), [])
    cache = open_cache(folder)
    found = {item.source: next(read_tokens(shard, [item])).tokens for shard, item in cache.items()}
    assert found.keys() == {entry.source for entry in entries}
    for entry in entries:
        assert torch.equal(found[entry.source], entry.tokens.tokens)
        assert torch.equal(read_source(folder, entry.source), entry.tokens.tokens)


def read_source(folder: Path, source: str) -> torch.Tensor:
    shard, item = open_cache(folder).find(source) or pytest.fail(f"{source} is not found")
    return next(read_tokens(shard, [item])).tokens


@pytest.mark.parametrize("shard_items", [2, 3, 4096])
@pytest.mark.parametrize("store", ["model", "int8"])
def test_copies_take_no_room(tmp_path: Path, shard_items: int, store: str) -> None:
    run = replace(RUN, store=store)
    cache = write_cache(tmp_path / "c", [*ORIGINALS, *COPIES], run, shard_items)
    single = write_cache(tmp_path / "single", ORIGINALS, run, shard_items)
    shards = {shard.number: shard for shard, _ in open_cache(cache).items()}
    assert sum(shard.num_rows for shard in shards.values()) == 5 * 7
    assert verify_cache(cache) == (10, [])
    for entry, copied in zip(ORIGINALS, COPIES, strict=True):
        assert torch.equal(read_source(cache, entry.source), read_source(cache, copied.source))
        assert torch.equal(read_source(cache, entry.source), read_source(single, entry.source))


@pytest.mark.parametrize("split", range(11))
def test_a_later_run_gives_the_bytes_of_one_run(tmp_path: Path, split: int) -> None:
    entries = [*ORIGINALS, *COPIES]
    expected = read_files(write_cache(tmp_path / "one", entries, shard_items=3))
    write_cache(tmp_path / "two", entries[:split], shard_items=3)
    assert read_files(write_cache(tmp_path / "two", entries[split:], shard_items=3)) == expected


@pytest.mark.parametrize("kept", range(11))
def test_a_killed_run_that_is_resumed_gives_the_bytes_of_one_run(tmp_path: Path, kept: int) -> None:
    """The working files of a run that was killed have what it had synced."""
    entries = [*ORIGINALS, *COPIES]
    expected = read_files(write_cache(tmp_path / "one", entries, shard_items=7))
    writer = CacheWriter(tmp_path / "two", RUN, "0.0", ShardLimits(items=7))
    for entry in entries[:kept]:
        writer.add(entry)
    if writer.journal:
        writer.journal.sync()
        writer.journal.close(delete_files=False)
    writer.lock.release()
    writer = CacheWriter(tmp_path / "two", RUN, "0.0", ShardLimits(items=7))
    assert all(writer.index.find(entry.source) for entry in entries[:kept])
    for entry in entries[kept:]:
        writer.add(entry)
    writer.close()
    found = read_files(tmp_path / "two")
    assert found.keys() == expected.keys()
    assert all(found[name] == expected[name] for name in expected if name != STAMPS)


@pytest.mark.parametrize("shard_items", [1, 2, 3, 15])
@pytest.mark.parametrize("removed", ["a/*", "a/0.png", "b/*", "a/[0-3].png", "c/2.png", "[ab]/[013].png"])
def test_copies_outlive_the_original(tmp_path: Path, shard_items: int, removed: str) -> None:
    entries = [*ORIGINALS, *COPIES, *(copy_of(entry, entry.source.replace("a/", "c/")) for entry in ORIGINALS)]
    cache = write_cache(tmp_path / "c", entries, shard_items=shard_items)
    writer = CacheWriter(cache, RUN, "0.0")
    garbage = find_matching(writer, [removed])
    collect_garbage(writer, garbage)
    writer.close()
    left = [entry for entry in entries if not fnmatch(entry.source, removed)]
    assert garbage.bytes == 0 and len(garbage.gone) == len(entries) - len(left) > 0
    check_tokens(cache, left)
    if shard_items == len(entries):  # rows are shared within a shard; others get their own
        assert sum(item.num_own_rows for item in items_by_source(cache).values()) == 5 * 7


def test_the_bytes_of_what_no_one_has_are_freed(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", [*ORIGINALS, *COPIES[:2]], shard_items=2)
    writer = CacheWriter(cache, RUN, "0.0")
    garbage = find_matching(writer, ["a/*"])
    assert garbage.bytes == 3 * 7 * 200 * 4
    collect_garbage(writer, garbage)
    writer.close()
    check_tokens(cache, COPIES[:2])


def test_a_renamed_folder_is_relocated_with_its_copies(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", [*ORIGINALS, *COPIES], shard_items=3)
    writer = CacheWriter(cache, RUN, "0.0")
    assert relocate(writer, "a", "x/y") == 5
    writer.close()
    check_tokens(cache, [copy_of(entry, entry.source.replace("a/", "x/y/")) for entry in ORIGINALS] + COPIES)


def test_an_original_that_changed_leaves_its_copies_as_they_were(tmp_path: Path) -> None:
    changed = make_wide_entry("a/0.png", version=1)
    cache = write_cache(tmp_path / "c", [*ORIGINALS, *COPIES, changed], shard_items=3)
    assert torch.equal(read_source(cache, "b/0.png"), ORIGINALS[0].tokens.tokens)
    assert torch.equal(read_source(cache, "a/0.png"), changed.tokens.tokens)
    writer = CacheWriter(cache, RUN, "0.0")
    collect_garbage(writer, replace(find_matching(writer, ["nothing"]), outdated=writer.index.superseded))
    writer.close()
    check_tokens(cache, [changed, *ORIGINALS[1:], *COPIES])


@pytest.mark.parametrize("shard_items", [2, 5])
def test_copies_of_a_lost_shard_are_encoded_again(tmp_path: Path, shard_items: int) -> None:
    cache = write_cache(tmp_path / "c", [*ORIGINALS, *COPIES], shard_items=shard_items)
    (cache / "prunesid-00000.safetensors").unlink()
    lost = ORIGINALS[:shard_items] + COPIES[:shard_items]
    assert items_by_source(cache).keys() == {e.source for e in [*ORIGINALS, *COPIES]} - {e.source for e in lost}
    num_good, faults = verify_cache(cache)
    assert num_good == 10 - 2 * shard_items and len(faults) == 1 and "is missing" in faults[0].problem
    writer = CacheWriter(cache, RUN, "0.0")
    assert not any(writer.index.find(entry.source) for entry in lost)
    for entry in lost:
        writer.add(entry)
    writer.complete()
    writer.close()
    check_tokens(cache, [*ORIGINALS, *COPIES])


def test_a_damaged_original_is_reported_for_each_copy(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", [*ORIGINALS, *COPIES], shard_items=5)
    path = cache / "prunesid-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    num_good, faults = verify_cache(cache)
    assert num_good == 8 and sorted("a/4.png" in fault.problem for fault in faults) == [False, True]


def test_merged_caches_share_contents(tmp_path: Path) -> None:
    entries = [*ORIGINALS, *COPIES]
    expected = read_files(write_cache(tmp_path / "one", entries, shard_items=3))
    parts = [write_cache(tmp_path / f"part{n}", entries[n::2], shard_items=2) for n in range(2)]
    merge(parts, tmp_path / "merged", "0.0", ShardLimits(items=3))
    assert read_files(tmp_path / "merged") == expected


def test_other_tokens_of_the_same_contents_are_kept_by_a_merge(tmp_path: Path) -> None:
    """With a dynamic budget, what is kept of an image depends on the others of its run."""
    fewer = make_wide_entry("other.png").tokens
    other = replace(COPIES[0], tokens=fewer)
    parts = [write_cache(tmp_path / "0", ORIGINALS), write_cache(tmp_path / "1", [other])]
    merge(parts, tmp_path / "merged", "0.0", ShardLimits())
    check_tokens(tmp_path / "merged", [*ORIGINALS, other])


def test_a_copy_of_a_later_shard_is_refused(tmp_path: Path) -> None:
    cache = write_cache(tmp_path / "c", [*ORIGINALS, *COPIES])
    path = cache / "prunesid-00000.safetensors"
    edit_header(path, lambda body: body["items"][-1].update(shard=1))
    with pytest.raises(CacheError, match="a later shard"):
        read_header(path)


def test_the_content_index_finds_what_was_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(content_index_module, "MIN_MERGED", 10)
    generator = torch.Generator().manual_seed(0)
    digests = [bytes(torch.randint(256, (32,), generator=generator).tolist()).hex() for _ in range(200)]
    cache = write_cache(tmp_path / "c", ORIGINALS)
    index = ContentIndex(open_cache(cache).index.table)
    for number, digest in enumerate(digests[:150]):
        index.add(digest, ShardPosition(7, number))
    assert [index.find(digest) for digest in digests] == [ShardPosition(7, n) for n in range(150)] + [None] * 50
    assert [index.find(entry.provenance.digest) for entry in ORIGINALS] == [ShardPosition(0, n) for n in range(5)]


def test_repeated_digests_are_those_of_several_items(tmp_path: Path) -> None:
    repeated = RepeatedDigests(open_cache(write_cache(tmp_path / "c", [*ORIGINALS, *COPIES[:2]])).index.table)
    assert [repeated.has(entry.provenance.digest) for entry in ORIGINALS] == [True, True, False, False, False]
