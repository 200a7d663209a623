"""What comes into a cache, and how a shard holds it."""

from __future__ import annotations

from dataclasses import dataclass

from prunesid_cli.tokencache.format import Item, Run, checksum
from prunesid_cli.tokencache.index_table import Stamp
from prunesid_cli.tokencache.quantization import STORES, bytes_of
from prunesid_cli.types import TokenSet


@dataclass(frozen=True)
class Entry:
    """An item on its way into a cache, its tokens on the CPU. `stamp`: of the input's file when it was read."""

    source: str
    digest: str
    size: tuple[int, int]
    tokens: TokenSet
    phi: float
    notes: tuple[str, ...]
    sampling: str = ""
    decoder: str = ""
    stamp: Stamp | None = None


Rows = tuple[int, bytes, bytes]
"""Channels of some rows, their bytes, and those of their scales."""


def stored(entry: Entry, run: Run) -> tuple[Item, Rows]:
    """An entry as a shard holds it."""
    import torch

    tokens = entry.tokens
    rows, scales = STORES[run.store].pack(tokens.tokens.to(getattr(torch, run.dtype)))
    data, more = bytes_of(rows), b"" if scales is None else bytes_of(scales)
    names = ("source", "digest", "size", "phi", "notes", "sampling", "decoder")
    told = {name: getattr(entry, name) for name in names}
    whole, span = tokens.whole, (0, len(tokens.slots))
    item = Item(layout=tokens.layout, slots=tokens.slots, whole=whole, rows=span, check=checksum(data, more), **told)
    return item, (rows.shape[1], data, more)
