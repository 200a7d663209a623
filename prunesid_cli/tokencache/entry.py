"""A new item of a cache: what the pipeline hands over, and how a shard stores it."""

from __future__ import annotations

from dataclasses import dataclass

from prunesid_cli.tokencache.format import Item, Run, checksum
from prunesid_cli.tokencache.index_table import Stamp
from prunesid_cli.tokencache.quantization import STORES, bytes_of
from prunesid_cli.types import Provenance, TokenSet


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An item to be written.

    Attributes:
        provenance: The input.
        tokens: Its kept tokens, on the CPU.
        phi: Its information, 1 - rho (Eq. 7).
        stamp: Size and time of change of the input's file when it was read; None if they may not be relied on.
    """

    provenance: Provenance
    tokens: TokenSet
    phi: float
    stamp: Stamp | None = None

    @property
    def source(self) -> str:
        return self.provenance.source


Rows = tuple[int, bytes, bytes]
"""Channels of some rows, their bytes, and the bytes of their scales."""


def pack_entry(entry: Entry, run: Run) -> tuple[Item, Rows]:
    """An entry as a shard stores it. Its rows begin at 0 until the shard assigns them."""
    import torch

    tokens = entry.tokens
    rows, scales = STORES[run.store].pack(tokens.tokens.to(getattr(torch, run.dtype)))
    data, scale_data = bytes_of(rows), b"" if scales is None else bytes_of(scales)
    item = Item(
        **vars(entry.provenance),
        layout=tokens.layout,
        slots=tokens.slots,
        is_unpruned=tokens.is_unpruned,
        rows=(0, len(tokens.slots)),
        phi=entry.phi,
        check=checksum(data, scale_data),
    )
    return item, (rows.shape[1], data, scale_data)
