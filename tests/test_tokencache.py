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
    Run,
    open_cache,
    read_header,
    read_tokens,
    verify,
    write_shard,
)
from prunesid_cli.tokencache import writer as writing
from prunesid_cli.tokencache.format import FORMAT
from prunesid_cli.types import SUMMARY, Layout, Region, TokenSet
from tests.conftest import Run as Runner

RUN = Run("demo", "r1", "llava", "prunesid", "11%", False, False, "float32")
LAYOUT = Layout("<image>", (6,), (Region(0, 2, 3, 3),))


def entry(number: int, count: int = 3, dtype: torch.dtype = torch.float32) -> Entry:
    tokens = torch.arange(count * 4, dtype=torch.float32).view(count, 4).add(number).to(dtype)
    kept = TokenSet(tokens, (SUMMARY, *range(count - 1)), LAYOUT, False)
    return Entry(f"{number}.png", f"{number:064x}", (8, 9), kept, 0.25 + number, ("a note",))


def write(folder: Path, *entries: Entry, run: Run = RUN) -> Path:
    path = folder / "prunesid-00000.safetensors"
    write_shard(path, run, "0.0", entries)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_written_is_read(tmp_path: Path, dtype: torch.dtype) -> None:
    entries = [entry(n, n + 1, dtype) for n in range(5)]
    shard = read_header(write(tmp_path, *entries))
    assert shard.run == RUN
    for one, item, tokens in zip(entries, shard.items, read_tokens(shard, shard.items), strict=True):
        assert (item.source, item.digest, item.size, item.phi, item.notes) == (
            one.source, one.digest, one.size, one.phi, one.notes
        )  # fmt: skip
        assert torch.equal(tokens.tokens, one.tokens.tokens)
        assert replace(tokens, tokens=one.tokens.tokens) == one.tokens
    assert verify(shard) == []


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    """Read with nothing but the standard library, as another program would."""
    data = write(tmp_path, entry(0), entry(1)).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    assert set(header) == {"__metadata__", "tokens"}
    assert set(header["__metadata__"]) == {"prunesid"}
    body = json.loads(header["__metadata__"]["prunesid"])
    assert set(body) == {"format", "tool", "run", "items", "layouts", "tokens", "check"}
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
        assert len(verify(shard)) == 1, at
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
    monkeypatch.setattr(writing, "FORMAT", FORMAT + 1)
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
    writer = CacheWriter(tmp_path, RUN, "0.0", shard_items=2)
    for number in range(5):
        writer.add(entry(number))
    writer.close()
    again = CacheWriter(tmp_path, RUN, "0.0")
    assert again.held("3.png", f"{3:064x}")
    assert again.held("3.png", "another") is None
    again.add(replace(entry(3), digest="new"))
    again.close()
    assert [path.name for path in sorted(tmp_path.glob("*.safetensors"))] == [
        f"prunesid-0000{n}.safetensors" for n in range(4)
    ]
    cache = open_cache(tmp_path)
    assert list(cache.items()) == [f"{n}.png" for n in range(5)]
    assert cache.items()["3.png"][1].digest == "new"


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


def test_half_written_files_are_swept(tmp_path: Path) -> None:
    (tmp_path / ".prunesid-00000.safetensors.99.part").write_bytes(b"half")
    CacheWriter(tmp_path, RUN, "0.0").close()
    assert [path.name for path in tmp_path.iterdir()] == [".prunesid.lock"]


def test_what_others_left_half_written_is_not_ours_to_sweep(tmp_path: Path) -> None:
    (tmp_path / ".failures.jsonl.99.part").write_bytes(b"half")
    (tmp_path / ".film.mp4.part").write_bytes(b"half")
    CacheWriter(tmp_path, RUN, "0.0").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".film.mp4.part", ".prunesid.lock"]


def test_a_full_disk_leaves_a_valid_cache(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk with no space left: the same short write, the same error."""
    write(tmp_path, entry(0))
    code = (
        "import resource, sys; from pathlib import Path; from tests.test_tokencache import *\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "writer = CacheWriter(Path(sys.argv[1]), RUN, '0.0')\n"
        "writer.add(entry(1, 500))\n"
        "try:\n    writer.close()\nexcept CacheError as error:\n    print(error.problem, '|', error.hint)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60)
    assert "cannot write" in done.stdout, done.stderr
    assert "free some space" in done.stdout
    assert [path.name for path in tmp_path.glob("*")] == [".prunesid.lock", "prunesid-00000.safetensors"]
    assert list(open_cache(tmp_path).items()) == ["0.png"]


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
