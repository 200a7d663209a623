"""Writing a cache: shards, the index, and the list of failed inputs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from prunesid_cli.errors import CacheError, PruneSIDError
from prunesid_cli.tokencache.cache_errors import write_error
from prunesid_cli.tokencache.content_index import ContentIndex
from prunesid_cli.tokencache.entry import Entry, pack_entry
from prunesid_cli.tokencache.failures import read_failures, write_failures
from prunesid_cli.tokencache.format import (
    INDEX,
    MAX_SHARD_BYTES,
    MAX_SHARD_ITEMS,
    MAX_SHARDS,
    MEASUREMENT_LOG,
    Item,
    Run,
    Shard,
    is_cache_folder,
    shard_name,
)
from prunesid_cli.tokencache.index import Index, IndexEntry, MissingShards, index_with_shards
from prunesid_cli.tokencache.index_file import LoadedIndex, load_index, write_index
from prunesid_cli.tokencache.index_table import ShardPosition, Stamp
from prunesid_cli.tokencache.journal import ShardJournal, recover, resume_shard
from prunesid_cli.tokencache.lock import acquire_lock
from prunesid_cli.tokencache.run_mismatch import check_settings
from prunesid_cli.tokencache.shard import PackedRows, read_header, read_header_cached, row_channels
from prunesid_cli.types import Provenance

SYNC_SECONDS = 1.0
"""Seconds between syncs. A crash loses at most this much finished work."""
FLUSH_SECONDS, IDLE_SAVE_SECONDS = 300.0, 30.0
"""Time after which readers see what was added to the last shard: while items come, and while none come."""


@dataclass(frozen=True)
class ShardLimits:
    """When a shard is full: it has reached one of these limits."""

    items: int = MAX_SHARD_ITEMS
    bytes: int = MAX_SHARD_BYTES

    def are_reached(self, num_items: int, num_bytes: int) -> bool:
        """Whether a shard with so many items and bytes of rows is full."""
        return num_items >= self.items or num_bytes >= self.bytes


class CacheWriter:
    """Adds entries to a cache, one shard after the other. Not safe to call from several threads at once.

    Attributes:
        index: What the cache held when this run began, and what was saved since.
        missing: Shards that the cache has lost since an earlier run. Their items are not found, so they are compressed
            again if they are among the inputs. `complete` gives up the others.
        failed: Source -> record of `failures.jsonl`.
        unwritable: Why the folder cannot be written, if it holds a cache. Raised only when there is something to write.
    """

    def __init__(
        self, folder: Path, run: Run, tool: str, limits: ShardLimits = ShardLimits(), sampling: str = ""
    ) -> None:
        """Lock the folder, and take up what earlier runs left in it.

        Args:
            folder: The cache, made if it does not exist.
            run: Settings of the cache.
            tool: Version of prunesid.
            limits: When a shard is full.
            sampling: How the frames of clips are chosen.

        Raises:
            CacheError: The folder cannot be written, another run is writing to it, or it holds a cache of other
                settings.
        """
        self.folder, self.run, self.tool, self.limits, self.sampling = folder, run, tool, limits, sampling
        self.journal: ShardJournal | None = None
        self.stamps, self.new_stamps = dict[ShardPosition, Stamp](), dict[str, Stamp]()
        self.is_written = self.is_synced = True
        self.unindexed: Shard | None = None
        self._contents: ContentIndex | None = None
        self._contents_lock = Lock()
        self.lock, self.unwritable = acquire_lock(folder)
        try:
            if not self.unwritable:
                recover(folder, run)
            loaded = LoadedIndex(Index(), MissingShards(folder), is_saved=True)
            if is_cache_folder(folder):
                loaded = load_index(folder, with_stamps=True)
            self.index, self.missing, self.is_saved = loaded.index, loaded.missing, loaded.is_saved
            self.written_at = self.synced_at = time.monotonic()
            check_settings(folder, self.index.run, self.index.sampling, run, sampling)
            self.failed = {record["source"]: record for record in read_failures(folder)}
            self.saved_failures = dict(self.failed)
        except BaseException:
            self.lock.release()
            raise

    def find_by_digest(self, source: str, digest: str) -> IndexEntry | None:
        """Return the entry of a source if its digest is the same."""
        entry = self.index.find(source)
        return entry if entry and entry.digest == digest else None

    @property
    def contents(self) -> ContentIndex:
        """Which contents the cache holds, including what this run added. May be used by several threads."""
        with self._contents_lock:
            if self._contents is None:
                self._contents = ContentIndex(self.index.table)
            return self._contents

    def update_stamp(self, source: str, stamp: Stamp) -> None:
        """Record the new stamp of an input in the cache, so that it need not be read again."""
        self.new_stamps[source] = stamp

    def add(self, entry: Entry) -> None:
        """Add an item. Of contents that the cache holds, the tokens that it has are used again.

        Raises:
            CacheError: It cannot be written.
        """
        if self.contents.find(entry.provenance.digest):
            self.add_copy(entry.provenance, entry.stamp)
        else:
            self._append(*pack_entry(entry, self.run), entry.stamp)

    def add_copy(self, provenance: Provenance, stamp: Stamp | None) -> None:
        """Add an input with contents that the cache holds. Nothing is stored but where it came from.

        Raises:
            CacheError: It cannot be written, or the shard with these contents is damaged.
        """
        held = self.find_contents(provenance.digest)
        assert held, "only an input with contents that the cache holds is a copy"
        self._append(replace(held, **vars(provenance)), PackedRows(self._channels(held), b"", b""), stamp)

    def add_packed(self, item: Item, rows: PackedRows, stamp: Stamp | None) -> None:
        """Add an item that is packed already: by `pack_entry`, or copied from a cache with the same settings.

        Rows that the cache holds are not stored again.

        Raises:
            CacheError: It cannot be written, or the shard with the same contents is damaged.
        """
        held = self.find_contents(item.digest)
        if held and held.check == item.check:
            self.add_copy(item.provenance, stamp)
        else:
            self._append(replace(item, shard=None), rows, stamp)

    def find_contents(self, digest: str) -> Item | None:
        """Return an item with a digest, as a copy of it is.

        Raises:
            CacheError: Its shard is damaged.
        """
        position = self.contents.find(digest)
        return self.read_item(position) if position else None

    def read_item(self, position: ShardPosition) -> Item:
        """Return an item that the cache holds, or that this run added, as a copy of it is.

        Raises:
            CacheError: Its shard is damaged.
        """
        journal = self.journal  # another thread may close it
        is_new = journal is not None and position.shard == journal.number
        items = journal.items if journal is not None and is_new else self._read_header(position.shard).items
        item = items[position.item]
        return replace(item, shard=item.rows_place(position.shard).shard)

    def _channels(self, copy: Item) -> int:
        """Return the number of channels of a row."""
        if self.journal and self.journal.channels:
            return self.journal.channels
        return row_channels(self._read_header(copy.shard or 0))

    def _read_header(self, number: int) -> Shard:
        return read_header_cached(self.folder / shard_name(number))

    def _append(self, item: Item, rows: PackedRows, stamp: Stamp | None) -> None:
        if self.unwritable:
            raise self.unwritable
        if self.journal is None:
            self.journal = self._open_journal()
        position = ShardPosition(self.journal.number, len(self.journal.items))
        if stamp:
            self.stamps[position] = stamp
        self.journal.add(item, rows)
        self.contents.add(item.digest, position)
        self.is_written = self.is_synced = False
        self.failed.pop(item.source, None)
        if self.limits.are_reached(len(self.journal.items), self.journal.num_bytes):
            self.save()
            self.journal.close(delete_files=True)
            self.journal, self.stamps = None, {}
        elif time.monotonic() - self.written_at > FLUSH_SECONDS:
            self.flush()
        elif time.monotonic() - self.synced_at > SYNC_SECONDS:
            self._sync()

    def _open_journal(self) -> ShardJournal:
        """Resume the last shard if it is not full and this version of the tool wrote it, or begin a new one."""
        last = max(self.index.shards, default=-1)
        if last >= 0 and last == self.index.next_number - 1:
            shard = read_header(self.folder / shard_name(last))
            is_full = self.limits.are_reached(len(shard.items), shard.num_rows * shard.row_bytes)
            if shard.tool == self.tool and not is_full:
                return resume_shard(shard)
        if self.index.next_number >= MAX_SHARDS:
            problem = f"{self.folder} has {MAX_SHARDS:,} shard files, and no cache has more"
            raise CacheError(problem, "name another --out, with a larger --shard-items")
        return ShardJournal(self.folder, self.index.next_number, self.run, self.tool)

    def _sync(self) -> None:
        if self.journal:
            self.journal.sync()
        self.is_synced, self.synced_at = True, time.monotonic()

    def on_idle(self) -> None:
        """Make what was added durable, and after a while visible to readers. Called while no items come.

        Raises:
            CacheError: It cannot be written.
        """
        if self.unwritable:
            return
        if time.monotonic() - self.written_at > IDLE_SAVE_SECONDS:
            self.save()
        elif not self.is_synced:
            self._sync()

    def fail(self, source: str, error: PruneSIDError) -> None:
        """Record that an input failed."""
        self.failed[source] = {"source": source, "error": error.problem, "hint": error.hint}

    def clear_failure(self, source: str) -> None:
        """Forget that an input failed in an earlier run."""
        self.failed.pop(source, None)

    def flush(self) -> None:
        """Write the current shard durably. It may grow further.

        Raises:
            CacheError: It cannot be written.
        """
        if self.journal and not self.is_written:
            self.unindexed = self.journal.write()
            self.is_written, self.written_at = True, time.monotonic()

    def save(self) -> None:
        """Write the current shard, the index and the failures, as far as they changed.

        Raises:
            CacheError: One cannot be written.
        """
        self.flush()
        if self.unindexed:
            self.replace_index(index_with_shards(self.index, [self.unindexed], self.stamps))
            self.unindexed = None
        if self.new_stamps:
            self.replace_index(self.index.with_stamps(self.new_stamps))
            self.new_stamps = {}
        if not self.is_saved:
            write_index(self.folder, self.index)
            self.is_saved = True
        if self.failed != self.saved_failures:
            write_failures(self.folder, self.failed.values())
            self.saved_failures = dict(self.failed)

    def complete(self) -> None:
        """Note that all inputs came. An index makes the folder a cache even if there were none.

        Lost items that were not among the inputs are given up: later runs do not report them.

        Raises:
            CacheError: The folder cannot be written.
        """
        if self.unwritable:
            return
        self.is_saved = self.is_saved and (self.folder / INDEX).exists()
        try:
            (self.folder / MEASUREMENT_LOG).unlink(missing_ok=True)
        except OSError as error:
            raise write_error(self.folder / MEASUREMENT_LOG, error) from error
        if self.missing.numbers:
            self.save()
            abandoned = tuple(sorted({*self.index.abandoned, *self.missing.numbers}))
            self.replace_index(replace(self.index, abandoned=abandoned))

    def replace_index(self, index: Index) -> None:
        """Use another index of the same shards; `save` writes it."""
        self.index, self.is_saved = index, False

    def close(self) -> None:
        """Save all that is not saved yet, and release the lock.

        Raises:
            CacheError: It cannot be written. The next run writes what was added.
        """
        try:
            if self.unwritable and self.failed != self.saved_failures:
                raise self.unwritable
            if not self.unwritable:
                self.save()
            if self.journal:
                self.journal.close(delete_files=True)
                self.journal = None
        finally:
            if self.journal:
                self.journal.close(delete_files=False)
            self.lock.release()
