"""Helpers for tests of caches: small entries, caches and single shards, and what a cache holds."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from prunesid_cli.tokencache import CacheWriter, Entry, Item, Run, ShardLimits, Stamp, open_cache
from prunesid_cli.tokencache.entry import pack_entry
from prunesid_cli.tokencache.format import INDEX, METADATA_KEY, canonical_json, checksum
from prunesid_cli.tokencache.index_file import INDEX_TENSORS
from prunesid_cli.tokencache.journal import ShardJournal
from prunesid_cli.types import CLS_NOT_READ, Layout, Provenance, Region, TokenSet

RUN = Run("demo", "r1", "llava", "prunesid", "11%", False, False, "float32")
LAYOUT = Layout("<image>", (6,), (Region(0, 2, 3, 3),))
WIDE_LAYOUT = Layout("<image>", (300,), (Region(0, 15, 20, 20),))


def make_entry(number: int, count: int = 3, dtype: torch.dtype = torch.float32) -> Entry:
    """Return the entry NUMBER.png with `count` tokens of four channels."""
    tokens = torch.arange(count * 4, dtype=torch.float32).view(count, 4).add(number).to(dtype)
    layout = LAYOUT if count <= LAYOUT.total else replace(LAYOUT, runs=(2, count))
    token_set = TokenSet(tokens, (CLS_NOT_READ, *range(count - 1)), layout, is_unpruned=False)
    provenance = Provenance(source=f"{number}.png", digest=f"{number:064x}", size=(8, 9), notes=("a note",))
    return Entry(provenance=provenance, tokens=token_set, phi=(0.25 + number) % 2)


def edit_header(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the JSON of a shard or an index, and sign it again: the checksum is right, the contents may not be."""
    data = path.read_bytes()
    end = 8 + struct.unpack_from("<Q", data)[0]
    tensors = json.loads(data[8:end])
    body = json.loads(tensors["__metadata__"][METADATA_KEY])
    del body["check"]
    edit(body)
    offsets = {name: tensor["data_offsets"] for name, tensor in tensors.items() if name != "__metadata__"}
    signed = canonical_json(body).encode()
    chunks = []
    if path.name == INDEX:
        chunks = [data[end + start : end + stop] for start, stop in (offsets[name] for name in INDEX_TENSORS.values())]
    tensors["__metadata__"][METADATA_KEY] = canonical_json(body | {"check": checksum(signed, *chunks)})
    header = json.dumps(tensors, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[end:])


def make_entries(count: int) -> list[Entry]:
    return [make_entry(number) for number in range(count)]


def make_wide_entry(source: str, version: int = 0, channels: int = 200) -> Entry:
    """Return a version of an entry with seven random tokens, with some channels fifty times larger."""
    generator = torch.Generator().manual_seed(hash((source, version)) % 2**31)
    tokens = torch.randn(7, channels, generator=generator) * (1 + 50 * (torch.arange(channels) % 90 == 0))
    token_set = TokenSet(tokens, tuple(range(7)), WIDE_LAYOUT, is_unpruned=False)
    digest = f"{abs(hash((source, version))):064x}"
    provenance = Provenance(source=source, digest=digest, size=(8, 9), notes=())
    return Entry(provenance=provenance, tokens=token_set, phi=0.5, stamp=Stamp(len(source), version))


def with_digest(entry: Entry, digest: str) -> Entry:
    return replace(entry, provenance=replace(entry.provenance, digest=digest))


def write_shard(folder: Path, number: int, run: Run, tool: str, entries: Iterable[Entry]) -> Path:
    """Write a shard without an index; returns its path."""
    journal = ShardJournal(folder, number, run, tool)
    for entry in entries:
        journal.add(*pack_entry(entry, run))
    journal.write()
    journal.close(delete_files=True)
    return journal.path


def write_cache(folder: Path, entries: Iterable[Entry], run: Run = RUN, shard_items: int = 4096) -> Path:
    """Add entries to a cache; returns its folder."""
    writer = CacheWriter(folder, run, "0.0", ShardLimits(items=shard_items))
    for entry in entries:
        writer.add(entry)
    writer.close()
    return folder


def items_by_source(folder: Path) -> dict[str, Item]:
    """Read all items of a cache. None may be damaged."""
    cache = open_cache(folder)
    items = {item.source: item for _, item in cache.items()}
    assert not cache.faults
    return items


def read_files(folder: Path) -> dict[str, bytes]:
    """Read all files of a folder, hidden ones included."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
