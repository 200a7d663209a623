"""One shard: its header at once, its rows on demand, every byte checked. Its format is specified in format.py."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.format import (
    FORMAT,
    KEY,
    Item,
    Run,
    Shard,
    Stored,
    canonical,
    checksum,
    parse_shard_number,
    layout_from_record,
    shard_name,
)
from prunesid_cli.tokencache.quantization import BYTES, STORES, dtype_of
from prunesid_cli.types import TokenSet

CHECK = '{"check":"'
LARGEST_HEADER = 100_000_000
"""safetensors' own limit, in bytes."""


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
        raise unreadable(path, error) from error
    try:
        tensors = json.loads(header)
        text = tensors.pop("__metadata__")[KEY]
        body = json.loads(text)
        said = {name: {part: one[part] for part in ("dtype", "shape")} for name, one in tensors.items()}
        ends = sorted(tuple(one["data_offsets"]) for one in tensors.values())
        version, number = body["format"], body["number"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{path} is cut short or is no cache shard", hint) from error
    _check_version(path, version)
    is_sound = _has_check(text) and body["tensors"] == said
    if not is_sound or not isinstance(number, int) or not _is_dense(ends):
        raise CacheError(f"{path} has a damaged header", hint)
    if size != 8 + length + ends[-1][1]:
        raise CacheError(f"{path} is cut short", hint)
    if number != parse_shard_number(path):
        raise misplaced(path, number)
    layouts = [layout_from_record(record) for record in body["layouts"]]
    parts = {name: _stored(one, 8 + length) for name, one in tensors.items()}
    items = tuple(Item.from_record(record, layouts) for record in body["items"])
    return Shard(path, number, body["tool"], Run(**body["run"]), items, parts["tokens"], parts.get("scales"))


def _has_check(text: str) -> bool:
    """Whether a header's JSON has the checksum that it begins with, `check` being the first of its keys."""
    begins, check, rest = text[: len(CHECK)], text[len(CHECK) : len(CHECK) + 32], text[len(CHECK) + 34 :]
    return begins == CHECK and checksum(("{" + rest).encode()) == check


def _check_version(path: Path, version: Any) -> None:
    if not isinstance(version, int) or version > FORMAT:
        raise CacheError(f"{path} has cache format {version}, newer than {FORMAT}", "upgrade prunesid")
    if version < FORMAT:
        problem = f"{path} has cache format {version}, which is no longer read"
        raise CacheError(problem, "compress again, to another --out")


def _is_dense(ends: Sequence[tuple[int, int]]) -> bool:
    """Whether tensors follow each other without a gap."""
    return bool(ends) and [start for start, _ in ends] == [0, *(end for _, end in ends[:-1])]


def _stored(tensor: dict[str, Any], data: int) -> Stored:
    return Stored(data + tensor["data_offsets"][0], BYTES[tensor["dtype"]] * tensor["shape"][1])


Tensors = dict[str, tuple[str, list[int], Iterable[bytes]]]
"""Name -> dtype, shape [rows, channels], and bytes in pieces."""


def write_file(file: BinaryIO, body: dict[str, Any], tensors: Tensors) -> None:
    """A safetensors file whose tensors need not be in memory."""
    header, end = dict[str, Any](), 0
    for name, (dtype, shape, _) in tensors.items():
        start, end = end, end + BYTES[dtype] * shape[0] * shape[1]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    body = body | {"tensors": {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape, _) in tensors.items()}}
    metadata = {KEY: canonical(body | {"check": checksum(canonical(body).encode())})}
    text = json.dumps({"__metadata__": metadata} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for _, _, pieces in tensors.values():
        for piece in pieces:
            file.write(piece)


def read_rows(shard: Shard, items: Iterable[Item]) -> Iterator[tuple[Item, list[bytes]]]:
    """What is stored of some items, tokens before scales, each checked. Needs no torch.

    Raises:
        CacheError: the bytes are not those that were written.
    """
    for item, parts in stored_rows(shard, items):
        if checksum(*parts) != item.check:
            raise damaged(item, shard)
        yield item, parts


def stored_rows(shard: Shard, items: Iterable[Item]) -> Iterator[tuple[Item, list[bytes]]]:
    """What is stored of some items, unchecked."""
    try:
        with shard.path.open("rb") as file:
            for item in items:
                yield item, [_rows(file, part, item.rows) for part in shard.parts]
    except OSError as error:
        raise unreadable(shard.path, error) from error


def _rows(file: BinaryIO, part: Stored, rows: tuple[int, int]) -> bytes:
    file.seek(part.start + rows[0] * part.row)
    return file.read((rows[1] - rows[0]) * part.row)


def read_tokens(shard: Shard, items: Sequence[Item]) -> Iterator[TokenSet]:
    """The token sets of some items of one shard, in the dtype of its run, each checked against its checksum.

    Raises:
        CacheError: the bytes are not those that were written.
    """
    import torch

    store, own = STORES[shard.run.store], getattr(torch, shard.run.dtype)
    dtypes = {None: own, "F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}
    for item, (data, *more) in read_rows(shard, items):
        count = item.rows[1] - item.rows[0]
        tokens = torch.frombuffer(bytearray(data), dtype=dtypes[store.dtype]).view(count, -1)
        scales = torch.frombuffer(bytearray(more[0]), dtype=torch.float32).view(count, -1) if more else None
        yield TokenSet(store.unpack(tokens, scales).to(own), item.slots, item.layout, item.is_unpruned)


def channels(shard: Shard) -> int:
    """Of a row."""
    return shard.tokens.row // BYTES[dtype_of(shard.run.store, shard.run.dtype)]


def unreadable(path: Path, error: OSError) -> CacheError:
    return CacheError(f"cannot read {path}: {error.strerror}", "check it with: ls -l")


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
