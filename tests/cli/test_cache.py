"""`prunesid cache ls`, and names with control characters or bytes that are no text."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import CacheWriter, open_cache
from tests.caches import RUN, make_wide_entry, read_files, write_cache
from tests.conftest import Run

ODD_NAMES = [b"a\nb.png", b"tab\tbed.png", b"\x1b[31mred\x1b[m.png", b"\xff.png", "é\x85.png".encode()]


def run_piped(*args: object) -> bytes:
    """Run a command in a process of its own; returns the bytes that a pipe gets."""
    command = [sys.executable, "-m", "prunesid_cli", *map(str, args)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def test_the_earlier_version_of_a_failed_input_is_stale(
    run: Run, llava: Path, pictures: list[Path], tmp_path: Path
) -> None:
    """Also in a cache that it is merged into."""
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
        assert [record["stale"] for record in run("cache", "ls", cache, "--json").records] == [False, True]
        assert run("cache", "info", cache, "--json").records[0]["stale"] == 1
    answer = ("answer", tmp_path / "c", "what?", "--max-new-tokens", 1)
    assert "warning: 1 item of an earlier version" in run(*answer).err
    shutil.copy(pictures[2], bad)
    assert run(*command).code == 0
    assert "stale" not in run("cache", "ls", tmp_path / "c").out
    assert "earlier" not in run(*answer).err


def test_items_are_found_by_digest(tmp_path: Path) -> None:
    names = [f"{folder}/{number}.png" for folder in ("a", "a-b", "b") for number in range(5)]
    cache = open_cache(write_cache(tmp_path, map(make_wide_entry, names)))
    for name in names:
        digest = make_wide_entry(name).provenance.digest
        for prefix in (digest, digest[-64:][:63], digest.upper()):
            assert name in [item.source for _, item in cache.find_by_digest_prefix(prefix)]
    assert cache.find_by_digest_prefix("f" * 64) == []


def test_odd_names_are_escaped_on_a_line_each_or_printed_as_bytes(run: Run, tmp_path: Path) -> None:
    names = [os.fsdecode(name) for name in ODD_NAMES]
    cache = write_cache(tmp_path / "c", map(make_wide_entry, names))
    writer = CacheWriter(cache, RUN, "0.0")
    for name in names:
        writer.fail(name, CacheError(f"{name}: bad\x07", "mend it"))
    writer.close()
    escaped = [rb"a\nb.png", rb"tab\tbed.png", rb"\x1b[31mred\x1b[m.png", b"\xff.png", "é\\x85.png".encode()]
    lines = run_piped("cache", "ls", cache).splitlines()
    assert [line.split(b"\t")[2:] for line in lines] == [[name, b"stale: failed since"] for name in escaped]
    lines = run_piped("cache", "ls", cache, "--failed").splitlines()
    assert [line.split(b"\t") for line in lines] == [[name, rb"bad\x07"] for name in escaped]
    for options in ((), ("--failed",)):
        assert run_piped("cache", "ls", cache, "-0", *options) == b"".join(name + b"\0" for name in ODD_NAMES)
    assert [record["source"] for record in run("cache", "ls", cache, "--json").records] == names
    assert run("cache", "ls", cache, "-0", "--json").code == 2


def test_messages_about_odd_names_are_a_line_each(run: Run, llava: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name)).write_bytes(b"no picture")
    result = run("compress", tmp_path / "in", "--out", tmp_path / "c", "-m", llava)
    messages = [line for line in result.err.split("\n") if line.startswith("error: ")]
    assert (result.code, len(messages)) == (3, len(ODD_NAMES))
    for escaped in (r"a\nb.png", r"tab\tbed.png", r"\x1b[31mred\x1b[m.png", r"/\xff.png", r"é\x85.png"):
        assert any(escaped in message for message in messages), escaped


def test_names_listed_by_ls_can_be_compressed(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, picture in zip(ODD_NAMES, pictures, strict=False):
        path = os.fsencode(tmp_path / "in") + b"/" + name
        shutil.copy(picture, path)
        os.utime(path, (0, 0))  # the next run would read a file again that was written just now
    run("compress", tmp_path / "in", "--out", tmp_path / "1", "-m", llava)
    names = run_piped("cache", "ls", tmp_path / "1", "-0")
    assert run("compress", "-", "-0", "--out", tmp_path / "2", "-m", llava, stdin=names).code == 0
    assert read_files(tmp_path / "1") == read_files(tmp_path / "2")
