"""Reading a cache: headers at once, tokens on demand, every byte checked."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.format import (
    CALIBRATION,
    FAILURES,
    FORMAT,
    INDEX,
    KEY,
    LARGEST_HEADER,
    PATTERN,
    Item,
    Run,
    Shard,
    bytes_of,
    canonical,
    checksum,
    number_of,
    read_layout,
    shard_name,
)  # fmt: skip
from prunesid_cli.tokencache.index import Index, Missing, missing, read_index
from prunesid_cli.types import TokenSet

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Cache:
    """The headers of all shards of a folder, read and checked."""

    folder: Path
    shards: tuple[Shard, ...]
    index: Index = Index()

    @property
    def missing(self) -> Missing:
        """What was in the cache once, and is not there."""
        return missing(self.folder, self.index, {shard.number: len(shard.items) for shard in self.shards})

    @property
    def run(self) -> Run | None:
        return self.shards[0].run if self.shards else None

    def items(self) -> Iterator[tuple[Shard, Item]]:
        """Live items, in the order in which their sources first came."""
        yield from {item.source: (shard, item) for shard in self.shards for item in shard.items}.values()

    def find(self, source: str) -> tuple[Shard, Item] | None:
        return next((found for found in self.items() if found[1].source == source), None)

    def with_digest(self, prefix: str) -> list[tuple[Shard, Item]]:
        """The items of inputs whose sha256, in hex, begins so."""
        return [found for found in self.items() if found[1].digest.startswith(prefix)]

    def failures(self) -> list[dict[str, str]]:
        path = self.folder / FAILURES
        if not path.exists():
            return []
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        except (OSError, ValueError) as error:
            raise CacheError(f"cannot read {path}: {error}", f"delete {path}: what failed is tried again") from error

    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.path.stat().st_size for shard in self.shards)


def open_cache(folder: str | Path) -> Cache:
    """Read the headers of a cache. Shards that are missing do not keep the others from being read.

    Raises:
        CacheError: it is no cache, is damaged, is of a newer format, or mixes runs.
    """
    folder = Path(folder)
    index = read_index(folder)
    shards = tuple(read_header(path) for path in shard_paths(folder))
    for shard in shards[1:]:
        if shard.run != shards[0].run:
            raise mixed(shard.path, shards[0].path)
    return Cache(folder, shards, index)


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a cache in order, unread.

    Raises:
        CacheError: it is no cache.
    """
    hint = "make one with: prunesid compress IMAGES --out CACHE"
    if not folder.is_dir():
        raise CacheError(f"no such cache: {folder}", hint)
    if not is_cache(folder):
        raise CacheError(f"not a prunesid cache: {folder}", hint)
    return _numbered(folder)


def is_cache(folder: Path) -> bool:
    """Whether there is anything of a cache in a folder."""
    return bool(_numbered(folder)) or any((folder / name).exists() for name in (INDEX, FAILURES, CALIBRATION))


def _numbered(folder: Path) -> list[Path]:
    numbered = [(number, path) for path in folder.glob(PATTERN) if (number := number_of(path)) is not None]
    return [path for _, path in sorted(numbered)]


def read_header(path: Path) -> Shard:
    """Read and check one shard's header; not a byte of its tensors.

    Raises:
        CacheError: cut short, damaged, not a shard, or of a newer format.
    """
    hint = again(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            header = file.read(length) if 0 < length <= LARGEST_HEADER else b""
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CacheError(f"cannot read {path}: {error.strerror}", "check it with: ls -l") from error
    try:
        tensors = json.loads(header)
        body = json.loads(tensors.pop("__metadata__")[KEY])
        tokens = tensors["tokens"]
        layout = {"dtype": tokens["dtype"], "shape": tokens["shape"]}
        start_of_tokens, end = tokens["data_offsets"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{path} is cut short or is no cache shard", hint) from error
    version = body.get("format")
    if not isinstance(version, int) or version > FORMAT:
        raise CacheError(f"{path} has cache format {version}, newer than {FORMAT}", "upgrade prunesid")
    if version < FORMAT:
        raise CacheError(
            f"{path} has cache format {version}, which is no longer read", "compress again, to another --out"
        )
    is_sound = body.pop("check", None) == checksum(canonical(body).encode()) and body["tokens"] == layout
    if not is_sound or start_of_tokens != 0 or not isinstance(body.get("number"), int):
        raise CacheError(f"{path} has a damaged header", hint)
    if size != 8 + length + end:
        raise CacheError(f"{path} is cut short", hint)
    if body["number"] != number_of(path):
        raise misplaced(path, body["number"])
    layouts = [read_layout(record) for record in body["layouts"]]
    items = tuple(Item.read(record, layouts) for record in body["items"])
    shape, run = tuple(tokens["shape"]), Run(**body["run"])
    return Shard(path, body["number"], body["tool"], run, items, shape, tokens["dtype"], 8 + length)


def read_tokens(shard: Shard, items: Sequence[Item]) -> Iterator[TokenSet]:
    """The token sets of some items of one shard, each checked against its digest.

    Raises:
        CacheError: the bytes are not those that were written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(shard.path, framework="pt") as file:
            tokens = file.get_slice("tokens")
            for item in items:
                rows = _checked(tokens[item.rows[0] : item.rows[1]], item, shard)
                yield TokenSet(rows, item.slots, item.layout, item.whole)
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"cannot read {shard.path}: {error}", hint=f"prunesid cache verify {shard.path.parent}"
        ) from error


def _checked(tokens: Tensor, item: Item, shard: Shard) -> Tensor:
    if checksum(bytes_of(tokens)) != item.check:
        raise damaged(item, shard)
    return tokens


def damaged(item: Item, shard: Shard) -> CacheError:
    return CacheError(f"the tokens of {item.source} in {shard.path} are damaged", again(shard.path))


def mixed(path: Path, first: Path) -> CacheError:
    return CacheError(f"{path} is of another run than {first.name}", hint="move it elsewhere")


def misplaced(path: Path, number: int) -> CacheError:
    original = path.with_name(shard_name(number))
    if original.exists():
        return CacheError(f"{path} is a copy of {original.name}", f"delete {path}")
    return CacheError(f"{path} is {original.name} under another name", f"rename it to {original.name}")


def again(path: Path) -> str:
    return f"delete {path} and run the same compress again"
