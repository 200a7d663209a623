"""Writing token sets to a cache and reading them back.

One batch alone costs more per item than a long run does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prunesid_cli.pipeline.segments import to_host
from prunesid_cli.tokencache import CacheWriter, Entry, Run, open_cache, read_tokens
from prunesid_cli.types import Provenance, TokenSet


def write_cache(folder: Path, items: Sequence[TokenSet]) -> None:
    """Write token sets to a new cache; they are safely on disk afterwards."""
    dtype = str(items[0].tokens.dtype).removeprefix("torch.")
    writer = CacheWriter(folder, Run("bench", "-", "-", "-", "-", False, False, dtype), "-")
    for number, tokens in enumerate(to_host(items)):
        provenance = Provenance(source=f"{number}", digest=f"{number:064x}", size=(0, 0), notes=())
        writer.add(Entry(provenance=provenance, tokens=tokens, phi=0.0))
    writer.complete()
    writer.close()


def read_cache(folder: Path) -> list[TokenSet]:
    """Read all token sets of a cache."""
    return [tokens for shard, item in open_cache(folder).items() for tokens in read_tokens(shard, [item])]
