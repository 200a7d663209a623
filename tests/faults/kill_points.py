"""Trials that kill a command before each of its file operations on a cache, one after the other."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from prunesid_cli.tokencache import open_cache
from tests.faults.workbench import (
    SHARD_ITEMS,
    Lost,
    TokenBytes,
    Workbench,
    check_equal,
    check_valid,
    draw_picture,
    read_token_bytes,
    read_visible_files,
)

WRITE_FLAGS = os.O_WRONLY | os.O_RDWR
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.chmod")
"""Audit events of operations that change a folder, besides opening a file for writing."""


def points(folder: Path, options: argparse.Namespace) -> str:
    """Kill `compress`: a run that begins a cache, and one that continues a complete run over half of the pictures."""
    bench = Workbench(folder, options.items)
    expected, _ = bench.compress_undisturbed()
    half, pictures = folder / "half", sorted(bench.pictures.rglob("*.png"))
    bench.inputs = pictures[: (options.items + 1) // 2]
    if bench.compress(half) != 0:
        raise bench.failure("compressing half of the pictures fails")
    bench.inputs = [bench.pictures]
    count = kill_at_each_operation(bench, None, expected, bench.compress_command)
    count += kill_at_each_operation(bench, half, expected, bench.compress_command)
    return f"killed at each of {count} file operations over {options.items} items: all equal an undisturbed run"


def shards(folder: Path, options: argparse.Namespace) -> str:
    """Compress partitions of a folder, and kill `cache merge`: the merged cache equals that of one run."""
    bench = Workbench(folder, options.items)
    expected, _ = bench.compress_undisturbed()
    parts = [folder / f"part{number}" for number in range(options.count)]
    for number, part in enumerate(parts, 1):
        if bench.compress(part, "--shard", f"{number}/{options.count}") != 0:
            raise bench.failure(f"shard {number} fails")

    def merge_command(out: Path) -> list[str]:
        return ["cache", "merge", *map(str, parts), "--out", str(out), "--shard-items", str(SHARD_ITEMS)]

    out = folder / "merged"
    if bench.run(merge_command(out)) != 0:
        raise bench.failure("cannot merge")
    check_equal(out, expected)
    count = kill_at_each_operation(bench, None, expected, merge_command)
    sizes = [check_valid(part) for part in parts]
    done = f"{len(parts)} shards of {sizes} items, merged, and killed at each of {count} file operations meanwhile"
    return f"{done}: all equal one run over {options.items}"


def gc(folder: Path, options: argparse.Namespace) -> str:
    """Kill `cache gc` on a cache with a third of its items outdated and a tenth of its inputs gone.

    The other items are there at any time, no earlier version of an item is, and in the end the cache equals that of an
    undisturbed gc.
    """
    bench = Workbench(folder, options.items)
    full, _ = bench.compress_undisturbed()
    pictures, rng = sorted(bench.pictures.rglob("*.png")), random.Random(options.seed)
    changed = rng.sample(pictures, len(pictures) // 3)
    for path in changed:
        draw_picture(path, rng)
    if bench.compress(full) != 0:
        raise bench.failure("compressing the changed pictures fails")
    unchanged = sorted({*pictures} - {*changed})
    for path in (*rng.sample(changed, len(pictures) // 20), *rng.sample(unchanged, len(pictures) // 20)):
        path.unlink()
    clean = folder / "clean"
    shutil.copytree(full, clean)

    def gc_command(out: Path) -> list[str]:
        return ["cache", "gc", str(out)]

    if bench.run(gc_command(clean)) != 0 or read_visible_files(clean) == read_visible_files(full):
        raise bench.failure("gc removes nothing")
    items_before, items_after = read_items(full), read_items(clean)

    def check_items(out: Path) -> None:
        items = read_items(out)
        lost, wrong = items_after.items() - items.items(), items.items() - items_before.items()
        if lost or wrong:
            raise Lost(f"{len(lost)} items are lost, {len(wrong)} are not what they were")

    count = kill_at_each_operation(bench, full, clean, gc_command, check_items)
    return f"gc of {options.items} items killed at each of {count} file operations: nothing lost, all equal in the end"


def read_items(cache: Path) -> dict[str, TokenBytes]:
    """Read the tokens of all items of a cache, by source."""
    return {item.source: read_token_bytes(shard, item) for shard, item in open_cache(cache).items()}


def kill_at_each_operation(
    bench: Workbench,
    start: Path | None,
    expected: Path,
    command: Callable[[Path], list[str]],
    check: Callable[[Path], None] = lambda out: None,
) -> int:
    """Kill a command before its first file operation on a cache, resume it, then before its second one, and so on.

    Args:
        bench: Where the command is run.
        start: The cache that the command begins with, copied each time; None if it makes one.
        expected: The cache in the end.
        command: Cache -> command.
        check: Checks what a kill leaves, which must also be valid.

    Returns:
        The number of operations.
    """
    out = bench.folder / "cache"
    for number in range(10**6):
        if start:
            shutil.copytree(start, out)
        code = bench.run(command(out), before=partial(kill_before_operation, number, out))
        if code not in (0, -signal.SIGKILL):
            raise Lost(f"ended with code {code} at operation {number}")
        check_valid(out)
        check(out)
        if code and bench.run(command(out)) != 0:
            raise Lost(f"cannot continue after a kill at operation {number}")
        check_equal(out, expected)
        shutil.rmtree(out, ignore_errors=True)
        if code == 0:
            return number
    raise AssertionError("the command does not end")


def kill_before_operation(number: int, folder: Path) -> None:
    """Make this process kill itself before operation `number`, from 0, on files in a folder."""
    count = 0

    def on_event(event: str, args: tuple[Any, ...]) -> None:
        nonlocal count
        is_write = event == "open" and isinstance(args[2], int) and bool(args[2] & WRITE_FLAGS)
        if (is_write or event in CHANGES) and str(args[0]).startswith(str(folder)):
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

    sys.addaudithook(on_event)
