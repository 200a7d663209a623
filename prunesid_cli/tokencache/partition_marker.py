"""The partition that a cache was made of, if several machines share a collection with --shard.

`.prunesid-portion` in the folder of the cache holds it, for example as `2/3`. It is not part of the cache. A merged
cache has none. Without it, no missing partitions are reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from prunesid_cli.errors import CacheError, UsageError
from prunesid_cli.inputs.sharding import Partition, parse_partition
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.text import join_names
from prunesid_cli.tokencache.cache_file import read_file
from prunesid_cli.tokencache.format import is_cache_folder

PARTITION_MARKER = ".prunesid-portion"
MAX_MARKER_BYTES = 100


def read_partition(folder: Path) -> Partition | None:
    """Read the partition of a cache. Returns None if none is recorded, or it cannot be read."""
    try:
        return parse_partition((read_file(folder / PARTITION_MARKER, MAX_MARKER_BYTES) or b"").decode(), {})
    except (OSError, ValueError, UsageError):
        return None


def check_partition(folder: Path, partition: Partition) -> None:
    """Raise UsageError if a cache was made of another partition."""
    recorded = read_partition(folder) if is_cache_folder(folder) else None
    if recorded and partition.count > 1 and str(recorded) != str(partition):
        hint = "give each an --out of its own; join them with: prunesid cache merge"
        raise UsageError(f"{folder} holds partition {recorded}, not {partition}", hint)


def record_partition(folder: Path, partition: Partition, is_new: bool) -> None:
    """Record the partition of a cache before anything is written.

    Args:
        folder: The cache.
        partition: The partition; all inputs if its count is 1, which deletes the record.
        is_new: Whether the cache has no items. Earlier items may be of another partition, so then none is recorded.

    Raises:
        CacheError: It cannot be written.
    """
    path = folder / PARTITION_MARKER
    try:
        if partition.count > 1 and is_new:
            write_atomically(path, lambda file: file.write(str(partition).encode()))
        elif partition.count == 1 and path.exists():
            path.unlink()
    except OSError as error:
        raise CacheError(f"cannot write {path}: {error.strerror}", "free some space, or name another --out") from error


def find_partition_gaps(folders: Iterable[Path]) -> list[str]:
    """Report the partitions that are missing among some caches, and those that are there more than once."""
    partitions = [partition for folder in folders if (partition := read_partition(folder))]
    found = Counter(str(partition) for partition in partitions)
    expected = list[str]()
    for count in sorted({partition.count for partition in partitions}):
        expected += [str(Partition(number, count)) for number in range(1, count + 1)]
    missing, repeated = [name for name in expected if not found[name]], [name for name in expected if found[name] > 1]
    warnings = []
    if missing:
        warnings.append(f"not among these caches: partition {join_names(missing)}")
    if repeated:
        warnings.append(f"more than once among these caches: partition {join_names(repeated)}")
    return warnings
