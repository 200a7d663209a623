"""Trials with damaged files, full disks and concurrent writers."""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
from pathlib import Path

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache import open_cache, verify_cache
from tests.faults.workbench import (
    Lost,
    TokenBytes,
    Workbench,
    check_equal,
    check_valid,
    read_token_bytes,
    read_visible_files,
    wait,
)


def mutations(folder: Path, options: argparse.Namespace) -> str:
    """Change, cut, lengthen or reorder files of a cache: verify reports it, and no wrong token is read.

    Users may edit the list of failures and the calibration, which are text. For those, readers only must not crash.
    """
    bench, rng, num_unseen = Workbench(folder, options.items), random.Random(options.seed), 0
    cache, _ = bench.compress_undisturbed()
    (bench.pictures / "bad.png").write_bytes(b"no picture")
    bench.compress(cache)
    bench.compress(cache, "--calibrate")
    truth = {item.source: read_token_bytes(shard, item) for shard, item in open_cache(cache).items()}
    names = sorted(read_visible_files(cache))
    for _ in range(options.count):
        name = rng.choice(names)
        before = (cache / name).read_bytes()
        after = mutate(before, rng)
        (cache / name).write_bytes(after)
        faults = verify_cache(cache)[1]
        is_text = name.endswith((".json", ".jsonl"))
        if after != before and not faults and not is_text:
            raise Lost(f"verify does not see a change of {name}")
        num_unseen += not faults
        check_reading(cache, truth)
        (cache / name).write_bytes(before)
    if verify_cache(cache)[1]:
        raise Lost("the cache is not as it was")
    return (
        f"{options.count} mutations of {len(names)} files: verify told of all but {num_unseen}, in files of plain text"
    )


def mutate(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 2, 8, 64, 4096)))
    kind = rng.randrange(6)
    if kind == 0:
        return data[:start] + bytes([data[start] ^ (1 << rng.randrange(8))]) + data[start + 1 :]
    if kind == 1:
        return data[:start]
    if kind == 2:
        return data[:start] + bytes(end - start) + data[end:]
    if kind == 3:
        return data[:start] + rng.randbytes(end - start) + data[end:]
    if kind == 4:
        return data + rng.randbytes(end - start)
    return data[:start] + data[end:] + data[start:end]


def check_reading(cache: Path, truth: dict[str, TokenBytes]) -> None:
    """Check that what is read is true, or an error with a hint."""
    try:
        opened = open_cache(cache)
        opened.failures()
        for shard, item in opened.items():
            try:
                if read_token_bytes(shard, item) != truth[item.source]:
                    raise Lost(f"{item.source} was read wrongly")
            except CacheError as error:
                check_hint(error)
        for source in list(truth)[::7]:
            found = opened.find(source)
            if found and found[1].source != source:
                raise Lost(f"{found[1].source} was found for {source}")
    except CacheError as error:
        check_hint(error)


def check_hint(error: CacheError) -> None:
    if not error.hint:
        raise Lost(f"no hint: {error.problem}")


def writers(folder: Path, options: argparse.Namespace) -> str:
    """Start two runs into one cache at once: one does all the work, the other is refused or comes after it."""
    bench = Workbench(folder, options.items)
    expected, _ = bench.compress_undisturbed()
    num_refused = 0
    for number in range(options.count):
        out = folder / f"cache{number}"
        children = [bench.start(bench.compress_command(out)) for _ in range(2)]
        codes = sorted(wait(child) for child in children)
        if codes not in ([0, 0], [0, 1]):
            raise Lost(f"two runs ended with codes {codes}")
        num_refused += codes[1]
        check_equal(out, expected)
    return f"{options.count} times two writers over {options.items} items: {num_refused} refused, nothing lost"


def disk(folder: Path, options: argparse.Namespace) -> str:
    """Fill the disk after some more bytes, then make room again. Needs the right to mount a disk in memory."""
    bench, rng, num_full = Workbench(folder, options.items), random.Random(options.seed), 0
    expected, _ = bench.compress_undisturbed()
    size = sum(map(len, read_visible_files(expected).values()))
    small_disk = folder / "small"
    small_disk.mkdir()
    size_option = f"size={4 * size + (1 << 20)}"
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", size_option, "tmpfs", small_disk], check=False)
    if mount.returncode:
        return "not tried: no right to mount a disk in memory"
    try:
        for _ in range(options.count):
            out, ballast = small_disk / "cache", small_disk / "ballast"
            free = shutil.disk_usage(small_disk).free
            ballast.write_bytes(bytes(max(0, free - rng.randrange(4096, int(1.5 * size)))))
            code = bench.compress(out)
            log = (folder / "log.txt").read_text()
            if code not in (0, 1) or (code == 1 and "free some space" not in log):
                raise bench.failure(f"a full disk ends with code {code}")
            num_full += code
            check_valid(out)
            ballast.unlink()
            if bench.compress(out) != 0:
                raise Lost("cannot continue when there is room again")
            check_equal(out, expected)
            shutil.rmtree(out)
    finally:
        subprocess.run(["umount", small_disk], check=True)
    return f"{options.count} disks with little room, {num_full} of them full: all equal an undisturbed run in the end"
