"""A new item of a cache, and how it is packed for a shard."""

from __future__ import annotations

from dataclasses import dataclass

from prunesid_cli.tokencache.format import Item, Run, checksum
from prunesid_cli.tokencache.index_table import Stamp
from prunesid_cli.tokencache.quantization import STORES
from prunesid_cli.tokencache.shard import PackedRows
from prunesid_cli.types import Provenance, TokenSet


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An item to be written.

    Attributes:
        provenance: The input.
        tokens: Its kept tokens, on the CPU.
        phi: Its information, 1 - rho (Eq. 7).
        stamp: Size and time of change of the input's file when it was read; None if they are not reliable.
    """

    provenance: Provenance
    tokens: TokenSet
    phi: float
    stamp: Stamp | None = None

    @property
    def source(self) -> str:
        return self.provenance.source


def pack_entry(entry: Entry, run: Run) -> tuple[Item, PackedRows]:
    """Pack an entry as a shard stores it. Its rows begin at 0 until the shard assigns them."""
    import torch

    tokens = entry.tokens
    rows, scales = STORES[run.store].pack(tokens.tokens.to(getattr(torch, run.dtype)))
    data, scale_data = (
        b"" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in (rows, scales)
    )
    item = Item(
        **vars(entry.provenance),
        layout=tokens.layout,
        slots=tokens.slots,
        is_unpruned=tokens.is_unpruned,
        rows=(0, len(tokens.slots)),
        phi=entry.phi,
        check=checksum(data, scale_data),
    )
    return item, PackedRows(rows.shape[1], data, scale_data)
