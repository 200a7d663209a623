"""Caches joined and cleaned, and rows stored smaller than they came: through the command line where a user sees it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import STORES, CacheWriter, Entry, ShardLimits, Stamp, open_cache, read_tokens
from prunesid_cli.tokencache import Run as Made
from prunesid_cli.types import Layout, Provenance, Region, TokenSet
from tests.caches import held
from tests.conftest import Run

RUN = Made("demo", "r1", "llava", "prunesid", "11%", False, False, "float32")
LAYOUT = Layout("<image>", (300,), (Region(0, 15, 20, 20),))
NAMES = [f"{folder}/{number}.png" for folder in ("a", "a-b", "b") for number in range(5)]


def entry(source: str, version: int = 0, width: int = 200) -> Entry:
    generator = torch.Generator().manual_seed(hash((source, version)) % 2**31)
    tokens = torch.randn(7, width, generator=generator) * (1 + 50 * (torch.arange(width) % 90 == 0))
    digest = f"{abs(hash((source, version))):064x}"
    kept = TokenSet(tokens, tuple(range(7)), LAYOUT, False)
    provenance = Provenance(source=source, digest=digest, size=(8, 9), notes=())
    return Entry(provenance=provenance, tokens=kept, phi=0.5, stamp=Stamp(len(source), version))


def write(folder: Path, *entries: Entry, run: Made = RUN, items: int = 4096) -> Path:
    writer = CacheWriter(folder, run, "0.0", ShardLimits(items=items))
    for one in entries:
        writer.add(one)
    writer.close()
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("store", STORES)
def test_parts_merged_are_one_run(run: Run, tmp_path: Path, store: str) -> None:
    made = replace(RUN, store=store)
    parts = [write(tmp_path / f"{n}", *map(entry, NAMES[n::3]), run=made, items=2) for n in range(3)]
    before = [files(part) for part in parts]
    ran = run("cache", "merge", *parts, "--out", tmp_path / "all")
    assert (ran.code, ran.out) == (0, "")
    assert "merged 15 items of 3 caches" in ran.err
    assert [item.source for _, item in open_cache(tmp_path / "all").items()] == NAMES
    assert [files(part) for part in parts] == before
    assert run("cache", "verify", tmp_path / "all").out == "15 items good, 0 faults\n"
    from prunesid_cli import __version__

    whole = CacheWriter(tmp_path / "whole", made, __version__)
    for name in NAMES:
        whole.add(entry(name))
    whole.close()
    assert files(tmp_path / "all") == files(tmp_path / "whole")
    again = run("cache", "merge", *parts, "--out", tmp_path / "all", "--json")
    assert again.records == [{"merged": 0, "held": 15}]
    assert files(tmp_path / "all") == files(tmp_path / "whole")


def test_of_parts_that_overlap_the_last_counts(run: Run, tmp_path: Path) -> None:
    first, second = entry("x.png"), entry("x.png", 1)
    parts = [write(tmp_path / "1", first), write(tmp_path / "2", second, entry("y.png"))]
    assert run("cache", "merge", *parts, "--out", tmp_path / "all", "--json").records == [{"merged": 2, "held": 0}]
    assert held(tmp_path / "all")["x.png"].digest == second.provenance.digest


def test_failures_are_merged_unless_another_part_has_the_item(run: Run, tmp_path: Path) -> None:
    parts = [write(tmp_path / "1", entry("x.png")), write(tmp_path / "2", entry("y.png"))]
    writer = CacheWriter(parts[0], RUN, "0.0")
    for name in ("y.png", "z.png"):
        writer.fail(name, CacheError(f"{name}: bad", "mend it"))
    writer.close()
    run("cache", "merge", *parts, "--out", tmp_path / "all")
    assert run("cache", "ls", tmp_path / "all", "--failed").out == "z.png\tbad\n"


def test_an_earlier_version_of_what_failed_since_is_stale(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """In what it is merged into, too."""
    (tmp_path / "in").mkdir()
    good, bad = (shutil.copy(pictures[number], tmp_path / "in" / f"{number}.png") for number in (0, 1))
    command = ("compress", tmp_path / "in", "-m", llava, "--out", tmp_path / "c")
    assert run(*command).code == 0
    assert run("cache", "info", tmp_path / "c", "--json").records[0]["stale"] == 0
    bad.write_bytes(b"no picture")
    assert run(*command).code == 3
    run("cache", "merge", tmp_path / "c", "--out", tmp_path / "all")
    for cache in (tmp_path / "c", tmp_path / "all"):
        first, second = run("cache", "ls", cache).out.splitlines()
        assert first.endswith(f"\t{good}")
        assert second.endswith(f"\t{bad}\tstale: failed since")
        assert [one["stale"] for one in run("cache", "ls", cache, "--json").records] == [False, True]
        assert run("cache", "info", cache, "--json").records[0]["stale"] == 1
    answer = ("answer", tmp_path / "c", "what?", "--max-new-tokens", 1)
    assert "warning: 1 item of an earlier version" in run(*answer).err
    shutil.copy(pictures[2], bad)
    assert run(*command).code == 0
    assert "stale" not in run("cache", "ls", tmp_path / "c").out
    assert "earlier" not in run(*answer).err


def test_what_cannot_be_merged(run: Run, tmp_path: Path) -> None:
    first = write(tmp_path / "1", *map(entry, NAMES), items=4)
    other = write(tmp_path / "2", entry("y.png"), run=replace(RUN, keep="64"))
    told = run("cache", "merge", first, other, "--out", tmp_path / "all")
    assert (told.code, f"{other} holds a cache made with keep 64, not 11%" in told.err) == (1, True)
    assert run("cache", "merge", first, tmp_path / "none", "--out", tmp_path / "all").code == 1
    assert "into itself" in run("cache", "merge", first, "--out", first).err
    (first / "prunesid-00001.safetensors").unlink()
    assert "missing" in run("cache", "merge", first, "--out", tmp_path / "all").err
    shard = other / "prunesid-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    assert "damaged" in run("cache", "merge", other, "--out", tmp_path / "all").err
    assert not list((tmp_path / "all").glob("prunesid-0*"))


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where compress was called."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_gc_forgets_what_is_gone_and_what_is_outdated(run: Run, inputs: Path) -> None:
    entries = [entry(name) for name in NAMES]
    cache = write(inputs / "c", *entries, entry(NAMES[1], 1), entry(NAMES[14], 1), items=4)
    writer = CacheWriter(cache, RUN, "0.0")
    for name in ("gone.png", NAMES[2]):
        writer.fail(name, CacheError(f"{name}: bad", "mend it"))
    writer.close()
    for name in (NAMES[0], *NAMES[4:8]):
        (inputs / name).unlink()
    before = files(cache)
    dry = run("cache", "gc", cache, "--dry-run", "--json")
    size = 7 * 200 * 4
    assert dry.records == [{"gone": 5, "outdated": 2, "failures": 1, "bytes": 7 * size}]
    assert files(cache) == before
    ran = run("cache", "gc", cache)
    assert (ran.code, "let go of 5 inputs that are gone, 2 earlier versions" in ran.err) == (0, True)
    left = [name for number, name in enumerate(NAMES) if number not in (0, 4, 5, 6, 7)]
    assert sorted(held(cache)) == sorted(left)
    assert held(cache)[NAMES[1]].digest == entry(NAMES[1], 1).provenance.digest
    for shard, item in open_cache(cache).items():
        (tokens,) = read_tokens(shard, [item])
        version = int(item.source in (NAMES[1], NAMES[14]))
        assert torch.equal(tokens.tokens, entry(item.source, version).tokens.tokens)
        known = open_cache(cache, stamped=True).index.find(item.source)
        assert known and known.stamp == (len(item.source), version)
    assert run("cache", "verify", cache).out == "10 items good, 0 faults\n"
    assert [record["source"] for record in open_cache(cache).failures()] == [NAMES[2]]
    assert run("cache", "gc", cache, "--json").records == [{"gone": 0, "outdated": 0, "failures": 0, "bytes": 0}]
    write(cache, entry(NAMES[0]), items=4)
    assert run("cache", "verify", cache).out == "11 items good, 0 faults\n"


def test_gc_forgets_failures_whose_input_is_gone(run: Run, llava: Path, inputs: Path) -> None:
    """Also in a cache that never held anything else; what is left is a cache still."""
    assert run("compress", "imsg", "a/*.tif", "--out", "t", "-m", llava).code == 3
    assert len(run("cache", "ls", "t", "--failed").out.splitlines()) == 2
    assert run("cache", "gc", "t", "--dry-run", "--json").records[0]["failures"] == 2
    assert run("cache", "info", "t", "--json").records[0]["failed"] == 2
    Path("t/prunesid-index.safetensors").unlink()  # as an interrupted run has none
    ran = run("cache", "gc", "t")
    assert (ran.code, "0 inputs that are gone, 0 earlier versions, 2 failures of such inputs" in ran.err) == (0, True)
    assert run("cache", "gc", "t", "--json").records[0]["failures"] == 0
    assert (run("cache", "ls", "t", "--failed").out, run("cache", "ls", "t").code) == ("", 0)
    assert run("cache", "info", "t", "--json").records[0]["failed"] == 0
    assert run("cache", "verify", "t").out == "0 items good, 0 faults\n"


def test_what_is_mended_is_no_failure_any_more(run: Run, llava: Path, inputs: Path, pictures: list[Path]) -> None:
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
    ran = run(*command)
    assert (ran.code, run("cache", "ls", "t", "--failed").out) == (0, ""), ran.err
    assert run("cache", "info", "t", "--json").records[0]["failed"] == 0


def test_gc_does_not_believe_that_most_is_gone(run: Run, inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = write(inputs / "c", *map(entry, NAMES))
    monkeypatch.chdir(inputs / "a")
    ran = run("cache", "gc", cache)
    assert (ran.code, "15 of the 15 inputs" in ran.err, "--force" in ran.err) == (2, True, True)
    dry = run("cache", "gc", cache, "--dry-run", "--json")
    assert (dry.code, dry.records[0]["gone"], "warning: 15 of the 15 inputs" in dry.err) == (0, 15, True)
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
def test_gc_notices_a_missing_drive(run: Run, inputs: Path, count: int, code: int, is_absolute: bool) -> None:
    drives = [inputs / "mnt" / "1", inputs / "mnt" / "2"]
    for drive, many in zip(drives, (15, count), strict=True):
        drive.mkdir(parents=True)
        for number in range(many):
            (drive / f"{number}.png").touch()
    paths = [path for drive in drives for path in drive.iterdir()]
    names = [str(path if is_absolute else path.relative_to(inputs)) for path in paths]
    cache = write(inputs / "c", *map(entry, names))
    shutil.rmtree(drives[1])
    ran = run("cache", "gc", cache)
    assert (ran.code, f"none of the 10 inputs of {cache} in {drives[1]} is where it was" in ran.err) == (
        code,
        code == 2,
    )
    assert len(open_cache(cache)) == (25 if code else 15)


@pytest.mark.parametrize(("store", "most"), [("model", 0.0), ("fp8", 0.04), ("int8", 0.03)])
@pytest.mark.parametrize("width", [96, 128, 200])
def test_rows_stored_smaller_are_close(tmp_path: Path, store: str, most: float, width: int) -> None:
    """Also where some channels are fifty times larger than the others."""
    whole = entry("x.png", width=width)
    tokens = whole.tokens.tokens.clone()
    tokens[3] = 0
    whole = replace(whole, tokens=replace(whole.tokens, tokens=tokens))
    write(tmp_path, whole, run=replace(RUN, store=store))
    ((shard, item),) = open_cache(tmp_path).items()
    (found,) = read_tokens(shard, [item])
    error = (found.tokens - tokens).norm(dim=1) / tokens.norm(dim=1).clamp(min=1e-9)
    assert error.max() <= most
    assert torch.equal(found.tokens[3], tokens[3])


def test_items_are_found_by_digest(tmp_path: Path) -> None:
    cache = open_cache(write(tmp_path, *map(entry, NAMES)))
    for name in NAMES:
        digest = entry(name).provenance.digest
        for prefix in (digest, digest[-64:][:63], digest.upper()):
            assert name in [item.source for _, item in cache.find_by_digest_prefix(prefix)]
    assert cache.find_by_digest_prefix("f" * 64) == []


ODD = [b"a\nb.png", b"tab\tbed.png", b"\x1b[31mred\x1b[m.png", b"\xff.png", "é\x85.png".encode()]


def piped(*args: object) -> bytes:
    """What a pipe gets."""
    command = [sys.executable, "-m", "prunesid_cli", *map(str, args)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def test_odd_names_are_a_line_each_and_their_bytes(run: Run, tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in ODD]
    cache = write(tmp_path / "c", *map(entry, names))
    writer = CacheWriter(cache, RUN, "0.0")
    for name in names:
        writer.fail(name, CacheError(f"{name}: bad\x07", "mend it"))
    writer.close()
    shown = [rb"a\nb.png", rb"tab\tbed.png", rb"\x1b[31mred\x1b[m.png", b"\xff.png", "é\\x85.png".encode()]
    rows = piped("cache", "ls", cache).splitlines()
    assert [row.split(b"\t")[2:] for row in rows] == [[name, b"stale: failed since"] for name in shown]
    failed = piped("cache", "ls", cache, "--failed").splitlines()
    assert [row.split(b"\t") for row in failed] == [[name, rb"bad\x07"] for name in shown]
    for options in ((), ("--failed",)):
        assert piped("cache", "ls", cache, "-0", *options) == b"".join(name + b"\0" for name in ODD)
    assert [one["source"] for one in run("cache", "ls", cache, "--json").records] == names
    assert run("cache", "ls", cache, "-0", "--json").code == 2


def test_messages_about_odd_names_are_a_line_each(run: Run, llava: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ODD:
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(b"no picture")
    ran = run("compress", tmp_path / "in", "--out", tmp_path / "c", "-m", llava)
    told = [line for line in ran.err.split("\n") if line.startswith("error: ")]
    assert (ran.code, len(told)) == (3, len(ODD))
    for shown in (r"a\nb.png", r"tab\tbed.png", r"\x1b[31mred\x1b[m.png", r"/\xff.png", r"é\x85.png"):
        assert any(shown in line for line in told), shown


def test_names_go_from_a_cache_to_compress(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, picture in zip(ODD, pictures, strict=False):
        path = os.fsencode(tmp_path / "in") + b"/" + name
        shutil.copy(picture, path)
        os.utime(path, (0, 0))  # what was written just now is looked at again by the next run
    run("compress", tmp_path / "in", "--out", tmp_path / "1", "-m", llava)
    names = piped("cache", "ls", tmp_path / "1", "-0")
    assert run("compress", "-", "-0", "--out", tmp_path / "2", "-m", llava, stdin=names).code == 0
    assert files(tmp_path / "1") == files(tmp_path / "2")
