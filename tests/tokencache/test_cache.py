"""The cache file: what is written is what is read, byte for byte; whatever is not, is refused with a hint."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunesid_cli.errors import CacheError, MediaError
from prunesid_cli.tokencache import (
    CacheWriter,
    Entry,
    ShardLimits,
    Run,
    journal,
    open_cache,
    read_header,
    read_tokens,
    verify_shard,
)
from prunesid_cli.tokencache.format import FORMAT, INDEX
from prunesid_cli.types import CLS_NOT_READ, Layout, Provenance, Region, TokenSet
from tests.caches import held, write_shard
from tests.conftest import Run as Runner

RUN = Run("demo", "r1", "llava", "prunesid", "11%", False, False, "float32")
LAYOUT = Layout("<image>", (6,), (Region(0, 2, 3, 3),))


def entry(number: int, count: int = 3, dtype: torch.dtype = torch.float32) -> Entry:
    tokens = torch.arange(count * 4, dtype=torch.float32).view(count, 4).add(number).to(dtype)
    kept = TokenSet(tokens, (CLS_NOT_READ, *range(count - 1)), LAYOUT, False)
    provenance = Provenance(source=f"{number}.png", digest=f"{number:064x}", size=(8, 9), notes=("a note",))
    return Entry(provenance=provenance, tokens=kept, phi=0.25 + number)


def with_digest(one: Entry, digest: str) -> Entry:
    return replace(one, provenance=replace(one.provenance, digest=digest))


def write(folder: Path, *entries: Entry, run: Run = RUN) -> Path:
    path = folder / "prunesid-00000.safetensors"
    write_shard(path, run, "0.0", entries)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    entries = [entry(n, n + 1, dtype) for n in range(5)]
    run = replace(RUN, dtype=str(dtype).removeprefix("torch."))
    shard = read_header(write(tmp_path, *entries, run=run))
    assert shard.run == run
    for one, item, tokens in zip(entries, shard.items, read_tokens(shard, shard.items), strict=True):
        assert (item.provenance, item.phi) == (
            one.provenance, one.phi
        )  # fmt: skip
        assert torch.equal(tokens.tokens, one.tokens.tokens)
        assert replace(tokens, tokens=one.tokens.tokens) == one.tokens
    assert verify_shard(shard) == []


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    """Read with nothing but the standard library, as another program would."""
    data = write(tmp_path, entry(0), entry(1)).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert set(header) == {"__metadata__", "tokens"}
    assert set(header["__metadata__"]) == {"prunesid"}
    body = json.loads(header["__metadata__"]["prunesid"])
    assert set(body) == {"format", "number", "tool", "run", "items", "layouts", "tensors", "check"}
    item = body["items"][1]
    assert (item["rows"], item["slots"], item["whole"], item["layout"]) == ([3, 6], [-1, 0, 1], False, 0)
    (layout,) = body["layouts"]
    assert (layout["text"], layout["runs"], layout["advances"]) == ("<image>", [6], [])
    assert [layout["regions"][0][name] for name in ("first", "rows", "columns", "stride")] == [0, 2, 3, 3]
    start, width = 8 + length, 4 * 4
    values = struct.unpack("<12f", data[start + 3 * width : start + 6 * width])
    assert values == tuple(float(v + 1) for v in range(12))


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, entry(0), entry(1))
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            shard = read_header(path)
        except CacheError:
            continue
        assert len(verify_shard(shard)) == 1, at
        with pytest.raises(CacheError, match="damaged"):
            list(read_tokens(shard, shard.items))


def test_every_cut_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, entry(0), entry(1))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CacheError) as caught:
            open_cache(tmp_path)
        assert caught.value.hint


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "FORMAT", FORMAT + 1)
    write(tmp_path, entry(0))
    monkeypatch.undo()
    with pytest.raises(CacheError, match=f"newer than {FORMAT}") as caught:
        open_cache(tmp_path)
    assert "upgrade" in caught.value.hint


def test_what_is_no_cache(tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "none", "no such cache"), (tmp_path, "not a prunesid cache")):
        with pytest.raises(CacheError, match=words):
            open_cache(folder)


def test_shards_follow_each_other_and_the_last_counts(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, RUN, "0.0", ShardLimits(items=2))
    for number in range(5):
        writer.add(entry(number))
    writer.close()
    again = CacheWriter(tmp_path, RUN, "0.0", ShardLimits(items=2))
    assert again.find_by_digest("3.png", f"{3:064x}")
    assert again.find_by_digest("3.png", "another") is None
    again.add(with_digest(entry(3), "ab" * 32))
    again.close()
    assert [path.name for path in sorted(tmp_path.glob("prunesid-0*"))] == [
        f"prunesid-0000{n}.safetensors" for n in range(3)
    ]
    assert sorted(held(tmp_path)) == [f"{n}.png" for n in range(5)]
    assert held(tmp_path)["3.png"].digest == "ab" * 32


def four_shards(folder: Path) -> list[Path]:
    writer = CacheWriter(folder, RUN, "0.0", ShardLimits(items=2))
    for number in range(8):
        writer.add(entry(number))
    writer.complete()
    writer.close()
    return sorted(folder.glob("*.safetensors"))


def go_on(folder: Path, *entries: Entry, whole: bool = True) -> None:
    writer = CacheWriter(folder, RUN, "0.0", ShardLimits(items=3))
    try:
        for one in entries:
            if not writer.find_by_digest(one.source, one.provenance.digest):
                writer.add(one)
        if whole:
            writer.complete()
    finally:
        writer.close()


@pytest.mark.parametrize("lost", [[0], [1], [3], [1, 3], [2, 3], [0, 1, 2, 3]])
def test_lost_shards_are_missed_and_done_again(run: Runner, tmp_path: Path, lost: list[int]) -> None:
    paths = four_shards(tmp_path)
    assert run("cache", "verify", tmp_path).out == "8 items good, 0 faults\n"
    for number in lost:
        paths[number].unlink()
    for command in ("verify", "ls", "info"):
        ran = run("cache", command, tmp_path)
        assert ran.code == (1 if command == "verify" else 3)
        assert all(paths[number].name in ran.err for number in lost[:3]), ran.err
        assert f"missing, and with {'it' if len(lost) == 1 else 'them'} {2 * len(lost)} items" in ran.err
        assert "hint: run the same compress" in ran.err
    go_on(tmp_path, *[entry(number) for number in range(8)])
    assert run("cache", "verify", tmp_path).out == "8 items good, 0 faults\n"
    assert sorted(held(tmp_path)) == [f"{n}.png" for n in range(8)]
    assert run("cache", "ls", tmp_path).code == 0


def test_a_cache_is_checked_without_torch(tmp_path: Path) -> None:
    four_shards(tmp_path)[1].unlink()
    code = (
        "import sys; from pathlib import Path; from prunesid_cli.tokencache import verify_cache\n"
        "print(len(verify_cache(Path(sys.argv[1]))[1]), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert done.stdout == "1 False\n", done.stderr


def test_what_is_lost_stays_missed_until_a_run_comes_to_its_end(run: Runner, tmp_path: Path) -> None:
    four_shards(tmp_path)[1].unlink()
    go_on(tmp_path, entry(2), whole=False)
    assert run("cache", "verify", tmp_path).code == 1
    go_on(tmp_path, entry(9))
    assert run("cache", "verify", tmp_path).out == "8 items good, 0 faults\n"


def test_an_index_that_lags_is_lost_or_damaged_is_made_anew(run: Runner, tmp_path: Path) -> None:
    """After a crash there may be a shard that the index does not know, and the last one it knows may have grown."""
    four_shards(tmp_path)
    index, part = tmp_path / INDEX, tmp_path / "part"
    whole = index.read_bytes()
    part.mkdir()
    for number in range(3):
        writer = CacheWriter(part, RUN, "0.0", ShardLimits(items=2))
        writer.add(entry(number))
        writer.close()
    for stale in ((part / INDEX).read_bytes(), None, whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        index.unlink() if stale is None else index.write_bytes(stale)
        assert [item.source for _, item in open_cache(tmp_path).items()] == [f"{n}.png" for n in range(8)]
        assert open_cache(tmp_path).find("7.png")
        go_on(tmp_path, *[entry(number) for number in range(8)])
        assert index.read_bytes() == whole
        assert run("cache", "verify", tmp_path).out == "8 items good, 0 faults\n"


def test_an_index_from_before_its_last_shard_grew_is_no_fault(run: Runner, tmp_path: Path) -> None:
    """A run that goes on ends between its shard and its index. What an index tells of shards that are as it knows them
    must be right."""
    for number in range(4):
        writer = CacheWriter(tmp_path, RUN, "0.0", ShardLimits(items=3))
        writer.add(entry(number))
        writer.close()
        if number == 0:
            early = (tmp_path / INDEX).read_bytes()
        if number == 1:
            (tmp_path / INDEX).write_bytes(early)
            assert run("cache", "verify", tmp_path).out == "2 items good, 0 faults\n"
    whole = (tmp_path / INDEX).read_bytes()
    (tmp_path / INDEX).write_bytes(early)
    assert run("cache", "verify", tmp_path).out == "4 items good, 0 faults\n"
    other = tmp_path / "other"
    for number in range(5, 9):
        writer = CacheWriter(other, RUN, "0.0", ShardLimits(items=3))
        writer.add(entry(number))
        writer.close()
    (tmp_path / INDEX).write_bytes((other / INDEX).read_bytes())
    assert run("cache", "verify", tmp_path).code == 1
    (tmp_path / INDEX).write_bytes(whole)
    assert run("cache", "verify", tmp_path).code == 0


def test_what_grew_step_by_step_equals_what_was_written_at_once(tmp_path: Path) -> None:
    for name, steps in (("whole", [range(7)]), ("steps", [range(1), range(1, 4), range(4, 7)])):
        for step in steps:
            writer = CacheWriter(tmp_path / name, RUN, "0.0", ShardLimits(items=3))
            for number in step:
                writer.add(entry(number))
            writer.close()
    files = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("whole", "steps")]
    assert files[0] == files[1]


def test_a_damaged_shard_costs_its_own_items(run: Runner, tmp_path: Path) -> None:
    paths = four_shards(tmp_path)
    data = paths[1].read_bytes()
    paths[1].write_bytes(data.replace(b"2.png", b"7.png", 1))
    ran = run("cache", "ls", tmp_path)
    assert (ran.code, len(ran.out.splitlines())) == (3, 6)
    assert f"{paths[1]} has a damaged header\nhint: delete {paths[1]}" in ran.err
    assert run("cache", "merge", tmp_path, "--out", tmp_path / "all").code == 1
    paths[1].unlink()
    go_on(tmp_path, *[entry(number) for number in range(8)])
    assert run("cache", "ls", tmp_path).code == 0


def test_copied_and_renamed_shards_are_refused(run: Runner, tmp_path: Path) -> None:
    paths = four_shards(tmp_path)
    copy = tmp_path / "prunesid-00004.safetensors"
    copy.write_bytes(paths[1].read_bytes())
    (tmp_path / "prunesid-000003.safetensors").write_bytes(paths[3].read_bytes())  # no name of a shard
    ran = run("cache", "verify", tmp_path)
    assert (ran.code, ran.out) == (1, "8 items good, 1 fault\n")
    assert f"{copy} is a copy of prunesid-00001.safetensors\nhint: delete {copy}" in ran.err
    paths[1].unlink()
    assert "hint: rename it to prunesid-00001.safetensors" in run("cache", "ls", tmp_path).err
    copy.rename(paths[1])
    assert run("cache", "verify", tmp_path).code == 0


def test_an_item_held_twice_is_a_fault(run: Runner, tmp_path: Path) -> None:
    write(tmp_path, entry(0), entry(1))
    write_shard(tmp_path / "prunesid-00001.safetensors", RUN, "0.0", [with_digest(entry(0), "cd" * 32), entry(2)])
    changed_back = tmp_path / "prunesid-00002.safetensors"
    write_shard(changed_back, RUN, "0.0", [entry(0)])
    assert run("cache", "verify", tmp_path).code == 0
    again = tmp_path / "prunesid-00003.safetensors"
    write_shard(again, RUN, "0.0", [entry(2), entry(0), entry(3)])
    ran = run("cache", "verify", tmp_path)
    assert (ran.code, ran.out) == (1, "6 items good, 1 fault\n")
    assert f"{again} holds 2 items again, first 2.png of prunesid-00001.safetensors" in ran.err
    assert f"hint: delete {again}" in ran.err


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, name in ((0, "99999"), (1, "100000")):
        changed = with_digest(entry(0), f"{number:064x}")
        write_shard(tmp_path / f"prunesid-{name}.safetensors", RUN, "0.0", [changed])
    assert held(tmp_path)["0.png"].digest == f"{1:064x}"


def test_failures_stay_until_they_are_settled(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path, RUN, "0.0")
    for name in ("0.png", "other.png"):
        writer.fail(name, MediaError("bad", "mend it"))
    writer.close()
    assert [f["source"] for f in open_cache(tmp_path).failures()] == ["0.png", "other.png"]
    writer = CacheWriter(tmp_path, RUN, "0.0")
    writer.add(entry(0))
    writer.close()
    assert open_cache(tmp_path).failures() == [{"source": "other.png", "error": "bad", "hint": "mend it"}]


def test_another_run_is_not_mixed_in(tmp_path: Path) -> None:
    write(tmp_path, entry(0))
    with pytest.raises(CacheError, match="made with method prunesid, not random"):
        CacheWriter(tmp_path, replace(RUN, method="random"), "0.0")


def test_a_cache_that_cannot_be_written_may_be_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four_shards(tmp_path)
    (tmp_path / INDEX).unlink()

    def refused(path: Path, *args: object) -> None:  # what the system says to all but the superuser, who may be us
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refused)
    before = sorted(tmp_path.iterdir())
    go_on(tmp_path, *[entry(number) for number in range(8)])
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(CacheError, match="cannot write to .*: Permission denied"):
        go_on(tmp_path, entry(8))
    writer = CacheWriter(tmp_path, RUN, "0.0")
    writer.fail("0.png", MediaError("bad", "mend it"))
    with pytest.raises(CacheError, match="cannot write to"):
        writer.close()
    with pytest.raises(CacheError, match="cannot write to"):
        CacheWriter(tmp_path / "new", RUN, "0.0")


def test_half_written_files_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".prunesid-00000.safetensors.99.part").write_bytes(b"half")
    CacheWriter(tmp_path, RUN, "0.0").close()
    assert [path.name for path in tmp_path.iterdir()] == [".prunesid.lock"]


def test_what_others_left_half_written_is_not_ours_to_sweep(tmp_path: Path) -> None:
    (tmp_path / ".failures.jsonl.99.part").write_bytes(b"half")
    (tmp_path / ".film.mp4.part").write_bytes(b"half")
    CacheWriter(tmp_path, RUN, "0.0").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".film.mp4.part", ".prunesid.lock"]


def add_within(folder: Path, most: int, *kept: int) -> str:
    """Add items of so many rows, in a process that can write no file larger than that: a limit on the size of files
    stands for a disk with no space left, the same short write, the same error -> what was said."""
    code = (
        "import resource, sys; from pathlib import Path; from tests.tokencache.test_cache import *\n"
        "folder, most, *kept = Path(sys.argv[1]), *map(int, sys.argv[2:])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
        "writer = CacheWriter(folder, RUN, '0.0')\n"
        "try:\n    try:\n        for number, rows in enumerate(kept, 1):\n            writer.add(entry(number, rows))\n"
        "    finally:\n        writer.close()\n"
        "except CacheError as error:\n    print(error.problem, '|', error.hint)"
    )
    command = [sys.executable, "-c", code, folder, str(most), *map(str, kept)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_a_full_disk_leaves_a_valid_cache(tmp_path: Path) -> None:
    write(tmp_path, entry(0))
    said = add_within(tmp_path, 3000, 500)
    assert (said.count("cannot write"), "free some space" in said) == (1, True)
    assert list(held(tmp_path)) == ["0.png"]
    CacheWriter(tmp_path, RUN, "0.0").close()
    assert list(held(tmp_path)) == ["0.png"]
    assert not [*tmp_path.glob(".*.rows"), *tmp_path.glob(".*.log")], "of an item that was not whole nothing is left"


def test_what_a_full_disk_had_room_for_is_not_lost(tmp_path: Path) -> None:
    """Though there was none for the shard, which is written from it."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    whole.mkdir()
    full.mkdir()
    path = write(whole, *(entry(number, 200) for number in range(1, 4)))
    assert "cannot write" in add_within(full, path.stat().st_size - 1, 200, 200, 200)
    assert not (full / path.name).exists()
    CacheWriter(full, RUN, "0.0").close()
    assert (full / path.name).read_bytes() == path.read_bytes()
    assert list(held(full)) == ["1.png", "2.png", "3.png"]
    assert not list(full.glob(".*.rows"))


def test_ls_info_and_verify(run: Runner, tmp_path: Path) -> None:
    path = write(tmp_path, entry(0), entry(1, 4))
    assert run("cache", "ls", tmp_path).out == "3/6\t8x9\t0.png\n4/6\t8x9\t1.png\n"
    assert [r["source"] for r in run("cache", "ls", tmp_path, "--json").records] == ["0.png", "1.png"]
    facts = run("cache", "info", tmp_path, "--json").records[0]
    assert (facts["items"], facts["kept"], facts["tokens"], facts["method"]) == (2, 7, 12, "prunesid")
    assert run("cache", "verify", tmp_path).out == "2 items good, 0 faults\n"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    ran = run("cache", "verify", tmp_path)
    assert (ran.code, ran.out) == (1, "1 item good, 1 fault\n")
    assert "the tokens of 1.png" in ran.err
    assert run("cache", "verify", tmp_path / "none").code == 1


def test_an_unwritable_place_is_found_before_the_model_is_loaded(run: Runner, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = run("compress", tmp_path, "--out", tmp_path / "file" / "cache", "-m", "demo")
    assert (ran.code, "cannot write to" in ran.err) == (1, True)
