"""Time to open, search, list and continue a large cache: `python -m tests.benchmarks.cache --items 1000000`.

Items are small (one token of four channels), so that only the bookkeeping is timed. Commands are timed as processes,
beside `python -c "import numpy"`, with which each of them starts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from prunesid_cli.tokencache import CacheWriter, Item, Run, Stamp, open_cache
from prunesid_cli.tokencache.format import INDEX, checksum
from prunesid_cli.tokencache.index_file import read_index
from prunesid_cli.tokencache.shard import PackedRows
from prunesid_cli.types import Layout, Region

RUN = Run("demo", "r1", "llava", "prunesid", "11%", False, False, "float32")
LAYOUT = Layout("<image>", (576,), (Region(0, 24, 24, 24),))
ROW = bytes(range(16))


def name(number: int) -> str:
    return f"photos/{number // 1000:05d}/{number:08d}.jpg"


def item(number: int) -> Item:
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return Item(
        source=name(number), digest=digest, size=(640, 480), notes=(), layout=LAYOUT, slots=(number % 576,),
        is_unpruned=False, rows=(0, 1), phi=0.5, check=checksum(ROW, b""),
    )  # fmt: skip


def fill(folder: Path, items: int) -> None:
    writer = CacheWriter(folder, RUN, "0.0")
    for number in range(items):
        writer.add_packed(item(number), PackedRows(4, ROW, b""), Stamp(number, number))
    writer.close()


def seconds(work: Callable[[], object], times: int = 5) -> float:
    """Median seconds of `times` runs."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def command(*args: str, lines: int | None = None) -> Callable[[], None]:
    """Returns a function that runs a process and reads its first `lines` lines of output."""

    def work() -> None:
        with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            for number, _ in enumerate(process.stdout, 1):
                if number == lines:
                    break
            process.stdout.close()

    return work


def measure(folder: Path, items: int) -> dict[str, float]:
    tool = [sys.executable, "-m", "prunesid_cli", "cache"]
    cache = open_cache(folder)
    wanted = [name(number) for number in range(0, items, max(1, items // 200))]
    found = {
        "import numpy": seconds(command(sys.executable, "-c", "import numpy")),
        "cache info": seconds(command(*tool, "info", str(folder))),
        "cache ls | head": seconds(command(*tool, "ls", str(folder), lines=10)),
        "open": seconds(lambda: open_cache(folder)),
        "find one in the index": seconds(lambda: [cache.index.find(one) for one in wanted]) / len(wanted),
        "list all": seconds(lambda: sum(1 for _ in cache.items()), 1),
        "open to continue": seconds(lambda: CacheWriter(folder, RUN, "0.0").close(), 3),
    }
    (folder / INDEX).rename(folder / "kept")
    found["open without an index"] = seconds(lambda: open_cache(folder), 1)
    (folder / "kept").rename(folder / INDEX)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the bookkeeping of a large cache.")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, help="write JSON here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        fill(Path(folder), given.items)
        found = {"write an item": (time.perf_counter() - began) / given.items} | measure(Path(folder), given.items)
        index = read_index(Path(folder))
        size = (Path(folder) / INDEX).stat().st_size
    for what, took in found.items():
        print(f"{what:24}{took * 1000:14,.3f} ms")
    facts: dict[str, Any] = {
        "command": f"python -m tests.benchmarks.cache --items {given.items}",
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "items": given.items,
        "shards": len(index.shards) if index else 0,
        "index bytes": size,
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
        "seconds": {what: round(took, 7) for what, took in found.items()},
    }
    print(f"{facts['shards']} shards, index {size / 1e6:.1f} MB, peak {facts['peak MB']} MB")
    if given.out:
        given.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
