"""Which portion of a collection a cache is made of, where several machines share it by --shard.

`.prunesid-portion` in the cache's folder says it, as `2/3`. It is no part of the cache: what is merged has none, and
without it nobody is told of portions that lack.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from prunesid_cli.errors import CacheError, UsageError
from prunesid_cli.inputs.sharding import Partition, parse_partition
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.text import join_names
from prunesid_cli.tokencache.format import is_cache_folder

PORTION = ".prunesid-portion"


def read_partition(folder: Path) -> Partition | None:
    """What a cache says that it is made of; None where it says nothing, or nothing that can be read."""
    try:
        return parse_partition((folder / PORTION).read_text(encoding="utf-8"), {})
    except (OSError, ValueError, UsageError):
        return None


def check_partition(folder: Path, portion: Partition) -> None:
    """Raises UsageError: the cache is made of another one."""
    there = read_partition(folder) if is_cache_folder(folder) else None
    if there and portion.count > 1 and str(there) != str(portion):
        hint = "give each an --out of its own; join them with: prunesid cache merge"
        raise UsageError(f"{folder} holds shard {there}, not {portion}", hint)


def record_partition(folder: Path, portion: Partition, is_new: bool) -> None:
    """Before anything comes. A cache that had items before is not made of one portion, nor is one that gets all.

    Raises:
        CacheError: it cannot be written.
    """
    path = folder / PORTION
    try:
        if portion.count > 1 and is_new:
            write_atomically(path, lambda beside: beside.write_text(str(portion), encoding="utf-8"))
        elif portion.count == 1 and path.exists():
            path.unlink()
    except OSError as error:
        raise CacheError(f"cannot write {path}: {error.strerror}", "free some space, or name another --out") from error


def find_partition_gaps(folders: Iterable[Path]) -> list[str]:
    """What portions lack among some caches, and which are there more than once."""
    portions = [portion for folder in folders if (portion := read_partition(folder))]
    counts = Counter(map(str, portions))
    wanted = [f"{number}/{of}" for of in sorted({one.count for one in portions}) for number in range(1, of + 1)]
    lacking, repeated = [one for one in wanted if not counts[one]], [one for one in wanted if counts[one] > 1]
    told = [f"not among these caches: shard {join_names(lacking)}"] if lacking else []
    return told + ([f"more than once among these caches: shard {join_names(repeated)}"] if repeated else [])
