"""Lost, damaged, copied and renamed shards, and an index that does not fit them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prunesid_cli.tokencache import CacheWriter, Entry, ShardLimits, open_cache
from prunesid_cli.tokencache.format import INDEX
from tests.caches import RUN, items_by_source, make_entries, make_entry, with_digest, write_cache, write_shard
from tests.conftest import Run as Runner


def write_four_shards(folder: Path) -> list[Path]:
    """Write a complete cache of eight items; returns the paths of its shards."""
    write_cache(folder, make_entries(8), shard_items=2)
    return sorted(folder.glob("prunesid-0*.safetensors"))


def continue_cache(folder: Path, entries: list[Entry], is_complete: bool = True) -> None:
    """Add the entries that the cache does not hold."""
    writer = CacheWriter(folder, RUN, "0.0", ShardLimits(items=3))
    try:
        for entry in entries:
            if not writer.find_by_digest(entry.source, entry.provenance.digest):
                writer.add(entry)
        if is_complete:
            writer.complete()
    finally:
        writer.close()


@pytest.mark.parametrize("lost", [[0], [1], [3], [1, 3], [2, 3], [0, 1, 2, 3]])
def test_lost_shards_are_reported_and_compressed_again(run: Runner, tmp_path: Path, lost: list[int]) -> None:
    paths = write_four_shards(tmp_path)
    assert run("cache", "verify", tmp_path).out == "8 items good, 0 faults\n"
    for number in lost:
        paths[number].unlink()
    for command in ("verify", "ls", "info"):
        result = run("cache", command, tmp_path)
        assert result.code == (1 if command == "verify" else 3)
        assert all(paths[number].name in result.err for number in lost[:3]), result.err
        assert f"missing, and with {'it' if len(lost) == 1 else 'them'} {2 * len(lost)} items" in result.err
        assert "hint: run the same compress" in result.err
    continue_cache(tmp_path, make_entries(8))
    assert run("cache", "verify", tmp_path).out == "8 items good, 0 faults\n"
    assert sorted(items_by_source(tmp_path)) == [f"{number}.png" for number in range(8)]
    assert run("cache", "ls", tmp_path).code == 0


def test_a_cache_is_verified_without_torch(tmp_path: Path) -> None:
    write_four_shards(tmp_path)[1].unlink()
    code = (
        "import sys; from pathlib import Path; from prunesid_cli.tokencache import verify_cache\n"
        "print(len(verify_cache(Path(sys.argv[1]))[1]), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 False\n", done.stderr


def test_lost_items_are_reported_until_a_run_is_complete(run: Runner, tmp_path: Path) -> None:
    write_four_shards(tmp_path)[1].unlink()
    continue_cache(tmp_path, [make_entry(2)], is_complete=False)
    assert run("cache", "verify", tmp_path).code == 1
    continue_cache(tmp_path, [make_entry(9)])
    assert run("cache", "verify", tmp_path).out == "8 items good, 0 faults\n"


def test_an_index_that_is_old_lost_or_damaged_is_rebuilt(run: Runner, tmp_path: Path) -> None:
    """After a crash, there may be a shard that the index does not have, and its last one may have grown."""
    write_four_shards(tmp_path)
    index, part = tmp_path / INDEX, tmp_path / "part"
    data = index.read_bytes()
    for number in range(3):
        write_cache(part, [make_entry(number)], shard_items=2)
    damaged = data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]
    for stale in ((part / INDEX).read_bytes(), None, data[:-1], damaged):
        index.unlink() if stale is None else index.write_bytes(stale)
        assert [item.source for _, item in open_cache(tmp_path).items()] == [f"{n}.png" for n in range(8)]
        assert open_cache(tmp_path).find("7.png")
        continue_cache(tmp_path, make_entries(8))
        assert index.read_bytes() == data
        assert run("cache", "verify", tmp_path).out == "8 items good, 0 faults\n"


def test_an_index_from_before_its_last_shard_grew_is_no_fault(run: Runner, tmp_path: Path) -> None:
    """As after a crash between a shard and its index. What an index says of unchanged shards must be right."""
    for number in range(4):
        write_cache(tmp_path, [make_entry(number)], shard_items=3)
        if number == 0:
            early = (tmp_path / INDEX).read_bytes()
        if number == 1:
            (tmp_path / INDEX).write_bytes(early)
            assert run("cache", "verify", tmp_path).out == "2 items good, 0 faults\n"
    data = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).write_bytes(early)
    assert run("cache", "verify", tmp_path).out == "4 items good, 0 faults\n"
    other = tmp_path / "other"
    for number in range(5, 9):
        write_cache(other, [make_entry(number)], shard_items=3)
    (tmp_path / INDEX).write_bytes((other / INDEX).read_bytes())
    assert run("cache", "verify", tmp_path).code == 1
    (tmp_path / INDEX).write_bytes(data)
    assert run("cache", "verify", tmp_path).code == 0


def test_only_the_items_of_a_damaged_shard_are_lost(run: Runner, tmp_path: Path) -> None:
    paths = write_four_shards(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes().replace(b"2.png", b"7.png", 1))
    result = run("cache", "ls", tmp_path)
    assert (result.code, len(result.out.splitlines())) == (3, 6)
    assert f"{paths[1]} has a damaged header: its checksum is wrong\nhint: delete {paths[1]}" in result.err
    assert run("cache", "merge", tmp_path, "--out", tmp_path / "all").code == 1
    paths[1].unlink()
    continue_cache(tmp_path, make_entries(8))
    assert run("cache", "ls", tmp_path).code == 0


def test_copied_and_renamed_shards_are_refused(run: Runner, tmp_path: Path) -> None:
    paths = write_four_shards(tmp_path)
    copy = tmp_path / "prunesid-00004.safetensors"
    copy.write_bytes(paths[1].read_bytes())
    (tmp_path / "prunesid-000003.safetensors").write_bytes(paths[3].read_bytes())  # not the name of a shard
    result = run("cache", "verify", tmp_path)
    assert (result.code, result.out) == (1, "8 items good, 1 fault\n")
    assert f"{copy} is a copy of prunesid-00001.safetensors\nhint: delete {copy}" in result.err
    paths[1].unlink()
    assert "hint: rename it to prunesid-00001.safetensors" in run("cache", "ls", tmp_path).err
    copy.rename(paths[1])
    assert run("cache", "verify", tmp_path).code == 0


def test_an_item_that_is_stored_twice_is_a_fault(run: Runner, tmp_path: Path) -> None:
    write_shard(tmp_path, 0, RUN, "0.0", make_entries(2))
    write_shard(tmp_path, 1, RUN, "0.0", [with_digest(make_entry(0), "cd" * 32), make_entry(2)])
    write_shard(tmp_path, 2, RUN, "0.0", [make_entry(0)])  # it changed back
    assert run("cache", "verify", tmp_path).code == 0
    path = write_shard(tmp_path, 3, RUN, "0.0", [make_entry(2), make_entry(0), make_entry(3)])
    result = run("cache", "verify", tmp_path)
    assert (result.code, result.out) == (1, "6 items good, 1 fault\n")
    assert f"{path} holds 2 items again, first 2.png of prunesid-00001.safetensors" in result.err
    assert f"hint: delete {path}" in result.err


def test_ls_info_and_verify(run: Runner, tmp_path: Path) -> None:
    path = write_shard(tmp_path, 0, RUN, "0.0", [make_entry(0), make_entry(1, 4)])
    assert run("cache", "ls", tmp_path).out == "3/6\t8x9\t0.png\n4/6\t8x9\t1.png\n"
    assert [record["source"] for record in run("cache", "ls", tmp_path, "--json").records] == ["0.png", "1.png"]
    facts = run("cache", "info", tmp_path, "--json").records[0]
    assert (facts["items"], facts["kept"], facts["tokens"], facts["method"]) == (2, 7, 12, "prunesid")
    assert run("cache", "verify", tmp_path).out == "2 items good, 0 faults\n"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = run("cache", "verify", tmp_path)
    assert (result.code, result.out) == (1, "1 item good, 1 fault\n")
    assert "the tokens of 1.png" in result.err
    assert run("cache", "verify", tmp_path / "none").code == 1
