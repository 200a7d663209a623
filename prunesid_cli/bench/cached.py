"""What it takes to keep token sets in a cache and to get them back: of one batch alone, which is dearer an item than in
a long run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunesid_cli.pipeline.compress import on_host
from prunesid_cli.tokencache import CacheWriter, Entry, Run, open_cache, read_tokens
from prunesid_cli.types import Provenance, TokenSet


def write(folder: Path, items: Sequence[TokenSet]) -> None:
    """A cache of its own, safe on the disk."""
    dtype = str(items[0].tokens.dtype).removeprefix("torch.")
    writer = CacheWriter(folder, Run("bench", "-", "-", "-", "-", False, False, dtype), "-")
    for number, one in enumerate(on_host(items)):
        provenance = Provenance(source=f"{number}", digest=f"{number:064x}", size=(0, 0), notes=())
        writer.add(Entry(provenance=provenance, tokens=one, phi=0.0))
    writer.complete()
    writer.close()


def read(folder: Path) -> list[TokenSet]:
    return [tokens for shard, item in open_cache(folder).items() for tokens in read_tokens(shard, [item])]
