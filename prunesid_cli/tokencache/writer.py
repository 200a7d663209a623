"""Writing a cache: shards that are there whole or not at all, and the list of what failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prunesid_cli.durable import write_whole
from prunesid_cli.errors import CacheError, PruneSIDError
from prunesid_cli.tokencache.format import (
    DTYPES,
    FAILURES,
    FORMAT,
    INDEX,
    KEY,
    Item,
    Run,
    bytes_of,
    canonical,
    checksum,
    number_of,
    shard_name,
)
from prunesid_cli.tokencache.index import Index
from prunesid_cli.tokencache.lock import locked
from prunesid_cli.tokencache.reader import Cache, is_cache, open_cache
from prunesid_cli.types import TokenSet


@dataclass(frozen=True)
class Entry:
    """An item on its way into a cache."""

    source: str
    digest: str
    size: tuple[int, int]
    tokens: TokenSet
    phi: float
    notes: tuple[str, ...]
    sampling: str = ""
    decoder: str = ""


class CacheWriter:
    """Collects entries and writes a shard whenever enough have come; `close` writes the rest and the failures.

    `sampling`: how the frames of clips are chosen.
    `missing`: what the cache has lost since an earlier run. It is not `held`, so it is done again where it is among the
    inputs; `complete` says that they have come to their end.

    Raises:
        CacheError: the folder cannot be written, or holds a cache of another run. One that cannot be written but holds
            a cache may hold all that there is to write: that is an error only once there is more.
    """

    def __init__(self, folder: Path, run: Run, tool: str, shard_items: int = 512, sampling: str = "") -> None:
        self.folder, self.run, self.tool, self.shard_items = folder, run, tool, shard_items
        self.sampling = sampling
        self.entries: list[Entry] = []
        self.lock, self.unwritable = locked(folder)
        try:
            self._go_on()
        except CacheError:
            self.lock.release()
            raise

    def _go_on(self) -> None:
        """Take up what earlier runs left in the folder."""
        cache = open_cache(self.folder) if is_cache(self.folder) else Cache(self.folder, ())
        if cache.run and cache.run != self.run:
            raise CacheError(
                f"{self.folder} holds a cache {_difference(cache.run, self.run)}", hint="name another --out"
            )
        self.missing, self.stored = cache.missing, cache.index
        items = sum(len(shard.items) for shard in cache.shards) + self.missing.items
        numbers = max([self.stored.shards, *(1 + shard.number for shard in cache.shards)])
        self.index = Index(numbers, items, self.stored.given_up)
        self.failed = {record["source"]: record for record in cache.failures()}
        self.recorded = dict(self.failed)
        self.done = {item.source: item for _, item in cache.items()}
        self.history = [item for shard in cache.shards for item in shard.items]
        other = next((item.sampling for item in self.history if item.sampling not in ("", self.sampling)), None)
        if other:
            problem = f"{self.folder} holds clips of which {other} were taken, not {self.sampling}"
            raise CacheError(problem, hint="name another --out")

    def held(self, source: str, digest: str) -> Item | None:
        """This very input, where it was in the cache when this run began."""
        item = self.done.get(source)
        return item if item and item.digest == digest else None

    def add(self, entry: Entry) -> None:
        if self.unwritable:
            raise self.unwritable
        self.entries.append(replace(entry, tokens=replace(entry.tokens, tokens=entry.tokens.tokens.cpu())))
        self.settle(entry.source)
        if len(self.entries) >= self.shard_items:
            self.flush()

    def fail(self, source: str, error: PruneSIDError) -> None:
        self.failed[source] = {"source": source, "error": error.problem, "hint": error.hint}

    def settle(self, source: str) -> None:
        """An input that failed in an earlier run, and is in the cache now, is a failure no more."""
        self.failed.pop(source, None)

    def flush(self) -> None:
        """Write what has come as a shard, durably."""
        if self.entries:
            number = self.index.shards
            write_shard(self.folder / shard_name(number), self.run, self.tool, self.entries)
            self.index = replace(self.index, shards=number + 1, items=self.index.items + len(self.entries))
            self.entries = []
            self._index()

    def complete(self) -> None:
        """All inputs came. What is missing still was not among them, and is not waited for any more."""
        self.flush()
        given_up = tuple(sorted({*self.index.given_up, *self.missing.numbers}))
        self.index = Index(self.index.shards, self.index.items - self.missing.items, given_up)

    def _index(self) -> None:
        if self.index != self.stored:
            text = canonical(asdict(self.index)) + "\n"
            _replace(self.folder / INDEX, lambda beside: beside.write_text(text, encoding="utf-8"))
            self.stored = self.index

    def close(self) -> None:
        try:
            if self.unwritable and self.failed != self.recorded:
                raise self.unwritable
            if not self.unwritable:
                self.flush()
                self._index()
                self._record_failures()
        finally:
            self.lock.release()

    def _record_failures(self) -> None:
        path = self.folder / FAILURES
        if self.failed:
            lines = "".join(canonical(record) + "\n" for record in self.failed.values())
            _replace(path, lambda beside: beside.write_text(lines, encoding="utf-8"))
        else:
            path.unlink(missing_ok=True)


def write_shard(path: Path, run: Run, tool: str, entries: Sequence[Entry]) -> None:
    """Write entries as one shard, whole or not at all."""
    import torch
    from safetensors.torch import save_file

    layouts = {layout: number for number, layout in enumerate(dict.fromkeys(entry.tokens.layout for entry in entries))}
    items, start = [], 0
    for entry in entries:
        end = start + len(entry.tokens.slots)
        items.append(_record(entry, layouts[entry.tokens.layout], (start, end)))
        start = end
    tokens = torch.cat([entry.tokens.tokens for entry in entries])
    shape = {"dtype": DTYPES[str(tokens.dtype)], "shape": list(tokens.shape)}
    body = {
        "format": FORMAT,
        "number": number_of(path),
        "tool": tool,
        "run": asdict(run),
        "items": items,
        "tokens": shape,
    }
    body["layouts"] = [asdict(layout) for layout in layouts]
    metadata = {KEY: canonical(body | {"check": checksum(canonical(body).encode())})}
    _replace(path, lambda beside: save_file({"tokens": tokens}, beside, metadata))


def _record(entry: Entry, layout: int, rows: tuple[int, int]) -> dict[str, Any]:
    of_a_clip = {"sampling": entry.sampling, "decoder": entry.decoder} if entry.sampling else {}
    return of_a_clip | {
        "source": entry.source,
        "digest": entry.digest,
        "size": entry.size,
        "layout": layout,
        "slots": entry.tokens.slots,
        "whole": entry.tokens.whole,
        "rows": rows,
        "phi": entry.phi,
        "notes": entry.notes,
        "check": checksum(bytes_of(entry.tokens.tokens)),
    }


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    from safetensors import SafetensorError

    try:
        write_whole(path, write)
    except (OSError, SafetensorError) as error:
        raise CacheError(f"cannot write {path}: {error}", hint="free some space, then run the same command") from error


def _difference(old: Run, new: Run) -> str:
    """The first field in which two runs differ, in words."""
    before, after = asdict(old), asdict(new)
    field = next(name for name in before if before[name] != after[name])
    return f"made with {field} {before[field]}, not {after[field]}"
