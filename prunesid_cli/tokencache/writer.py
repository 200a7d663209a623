"""Writing a cache: shards that are there whole or not at all, the index, and the list of what failed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from prunesid_cli.errors import CacheError, PruneSIDError
from prunesid_cli.runtime.atomic_write import write_atomically
from prunesid_cli.tokencache.entry import Entry, Rows, pack_entry
from prunesid_cli.tokencache.format import (
    FAILURES,
    INDEX,
    MEASUREMENT_LOG,
    MAX_SHARD_BYTES,
    MAX_SHARD_ITEMS,
    Item,
    Run,
    canonical,
    is_cache_folder,
    shard_name,
)
from prunesid_cli.tokencache.index import Index, IndexEntry, MissingShards, index_with_shards
from prunesid_cli.tokencache.index_file import Loaded, load_index, write_index
from prunesid_cli.tokencache.index_table import ShardPosition, Stamp
from prunesid_cli.tokencache.journal import ShardJournal, recover, unwritable
from prunesid_cli.tokencache.lock import acquire_lock
from prunesid_cli.tokencache.reader import read_failures
from prunesid_cli.tokencache.run_mismatch import describe_mismatch, mismatch_hint
from prunesid_cli.tokencache.shard import read_header

SYNCED_EVERY = 1.0
"""Seconds of work that a crash can cost, at most, beside what is in flight."""
WRITTEN_EVERY, SEEN_AFTER = 300.0, 30.0
"""Seconds after which readers see what a slow run has added to its last shard; and when nothing more comes."""


@dataclass(frozen=True)
class ShardLimits:
    """When a shard is full."""

    items: int = MAX_SHARD_ITEMS
    bytes: int = MAX_SHARD_BYTES


class CacheWriter:
    """Takes entries, and fills shard after shard. Not safe to call from several threads at once.

    `sampling`: how the frames of clips are chosen.
    `missing`: what the cache has lost since an earlier run. It is not `held`, so it is done again where it is among the
    inputs; `complete` says that they have come to their end.

    Raises:
        CacheError: the folder cannot be written, or holds a cache of another run. One that cannot be written but holds
            a cache may hold all that there is to write: that is an error only once there is more.
    """

    def __init__(self, folder: Path, run: Run, tool: str, limits: ShardLimits = ShardLimits(), sampling: str = "") -> None:
        self.folder, self.run, self.tool, self.limits, self.sampling = folder, run, tool, limits, sampling
        self.growing: ShardJournal | None = None
        self.stamps, self.newer = dict[ShardPosition, Stamp](), dict[str, Stamp]()
        self.is_written = self.is_indexed = self.is_synced = True
        self.lock, self.unwritable = acquire_lock(folder)
        try:
            self._go_on()
        except CacheError:
            self.lock.release()
            raise

    def _go_on(self) -> None:
        """Take up what earlier runs left in the folder."""
        if not self.unwritable:
            recover(self.folder)
        there = is_cache_folder(self.folder)
        loaded = load_index(self.folder, stamped=True) if there else Loaded(Index(), MissingShards(self.folder), True)
        self.index, self.missing, self.is_saved = loaded.index, loaded.missing, loaded.is_saved
        self.written = self.synced = time.monotonic()
        if self.index.run and self.index.run != self.run:
            found = describe_mismatch(self.index.run, self.run)
            raise CacheError(f"{self.folder} holds a cache {found}", mismatch_hint(self.index.run, self.run))
        if self.index.sampling not in ("", self.sampling):
            taken = f"{self.index.sampling} were taken, not {self.sampling}"
            raise CacheError(f"{self.folder} holds clips of which {taken}", hint="name another --out")
        self.failed = {record["source"]: record for record in read_failures(self.folder)}
        self.recorded = dict(self.failed)

    def find_unchanged(self, source: str, stamp: Stamp) -> IndexEntry | None:
        """This input, where it was in the cache when this run began, and has not been touched since it was read."""
        known = self.index.find(source)
        return known if known and known.stamp == stamp else None

    def find_by_digest(self, source: str, digest: str) -> IndexEntry | None:
        """This very input, where it was in the cache when this run began."""
        known = self.index.find(source)
        return known if known and known.digest == digest else None

    def update_stamp(self, source: str, stamp: Stamp) -> None:
        """An input that is held need not be read again as it looks now."""
        self.newer[source] = stamp

    def add(self, entry: Entry) -> None:
        item, rows = pack_entry(entry, self.run)
        self.add_packed(item, rows, entry.stamp)

    def add_packed(self, item: Item, rows: Rows, stamp: Stamp | None) -> None:
        """An item as `stored` makes it, or as another cache of the same run has it."""
        if self.unwritable:
            raise self.unwritable
        if self.growing is None:
            self.growing = self._unfinished()
        if stamp:
            self.stamps[self.growing.number, len(self.growing.records)] = stamp
        self.growing.add(item, *rows)
        self.is_written = self.is_synced = False
        self.clear_failure(item.source)
        if self._is_full(len(self.growing.records), self.growing.size):
            self.save()
            self._let_go()
        elif time.monotonic() - self.written > WRITTEN_EVERY:
            self.flush()
        elif time.monotonic() - self.synced > SYNCED_EVERY:
            self._sync()

    def on_idle(self) -> None:
        """While nothing comes: what did come is made safe, and after a while readers see it."""
        if self.unwritable:
            return
        if time.monotonic() - self.written > SEEN_AFTER:
            self.save()
        elif not self.is_synced:
            self._sync()

    def _sync(self) -> None:
        if self.growing:
            self.growing.sync()
        self.is_synced, self.synced = True, time.monotonic()

    def _unfinished(self) -> ShardJournal:
        """The last shard, if it is not full, as this version of the tool wrote it; else a new one."""
        last = max(self.index.shards, default=-1)
        if last >= 0 and last == self.index.given - 1:
            path = self.folder / shard_name(last)
            shard = read_header(path)
            rows = shard.items[-1].rows[1] if shard.items else 0
            if shard.tool == self.tool and not self._is_full(len(shard.items), rows * sum(p.row for p in shard.parts)):
                return ShardJournal.go_on(path, self.run, self.tool)
        return ShardJournal(self.folder / shard_name(self.index.given), self.run, self.tool)

    def _is_full(self, items: int, size: int) -> bool:
        return items >= self.limits.items or size >= self.limits.bytes

    def fail(self, source: str, error: PruneSIDError) -> None:
        self.failed[source] = {"source": source, "error": error.problem, "hint": error.hint}

    def clear_failure(self, source: str) -> None:
        """An input that failed in an earlier run, and is in the cache now, is a failure no more."""
        self.failed.pop(source, None)

    def flush(self) -> None:
        """Write what has come as a shard, durably. It may grow further."""
        if self.growing and not self.is_written:
            self.growing.write()
            self.is_written, self.is_indexed, self.written = True, False, time.monotonic()

    def save(self) -> None:
        """Write all that there is to write: shard, index, failures."""
        self.flush()
        if self.growing and not self.is_indexed:
            self.index = index_with_shards(self.index, [read_header(self.growing.path)], self.stamps)
            self.is_indexed, self.is_saved = True, False
        index = self.index.stamped(self.newer)
        if index is not self.index or not self.is_saved:
            self._replace(INDEX, lambda: write_index(self.folder, index))
        self.index, self.is_saved, self.newer = index, True, {}
        if self.failed != self.recorded:
            self._record_failures()

    def complete(self) -> None:
        """All inputs came, if any: an index makes a cache of it. What is missing still was not among them, and is not
        waited for any more."""
        if self.unwritable:
            return
        self.is_saved = self.is_saved and (self.folder / INDEX).exists()
        (self.folder / MEASUREMENT_LOG).unlink(missing_ok=True)
        if self.missing.numbers:
            self.save()
            given_up = tuple(sorted({*self.index.given_up, *self.missing.numbers}))
            self.index, self.is_saved = replace(self.index, given_up=given_up), False

    def replace_index(self, index: Index) -> None:
        """What somebody else, under this writer's lock, made of the shards."""
        self.index, self.is_saved = index, False

    def close(self) -> None:
        try:
            if self.unwritable and self.failed != self.recorded:
                raise self.unwritable
            if not self.unwritable:
                self.save()
            self._let_go()
        finally:
            if self.growing:
                self.growing.leave()
            self.lock.release()

    def _let_go(self) -> None:
        if self.growing:
            self.growing.close()
        self.growing, self.stamps = None, {}

    def _record_failures(self) -> None:
        path, lines = self.folder / FAILURES, "".join(canonical(one) + "\n" for one in self.failed.values())
        if lines:
            write = lambda beside: beside.write_text(lines, encoding="utf-8")  # noqa: E731
            self._replace(FAILURES, lambda: write_atomically(path, write))
        else:
            path.unlink(missing_ok=True)
        self.recorded = dict(self.failed)

    def _replace(self, name: str, write: Callable[[], None]) -> None:
        from safetensors import SafetensorError

        try:
            write()
        except OSError as error:
            raise unwritable(self.folder / name, error) from error
        except SafetensorError as error:
            raise CacheError(f"cannot write {self.folder / name}: {error}", "free some space") from error
