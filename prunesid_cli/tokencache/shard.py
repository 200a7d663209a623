"""Reading and writing one shard file: its header at once, its rows on demand, each checked against its checksum.

The format is specified in format.py.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.cache_errors import damaged_item, misplaced_shard, read_error, repair_hint
from prunesid_cli.tokencache.format import (
    FORMAT,
    METADATA_KEY,
    Item,
    Run,
    Shard,
    TensorLocation,
    canonical_json,
    checksum,
    layout_from_record,
    parse_shard_number,
)
from prunesid_cli.tokencache.quantization import DTYPE_BYTES, STORES, stored_dtype
from prunesid_cli.types import TokenSet

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""
ITEM_FIELDS = {field.name for field in fields(Item)} - {"is_unpruned"} | {"whole"}
CHECK_PREFIX = '{"check":"'
CHECK_CHARACTERS = 32


class PackedRows(NamedTuple):
    """The rows of one item as bytes.

    Attributes:
        channels: Channels of a row.
        data: The stored rows.
        scales: Their scales; empty if the rows are stored in the dtype of the model.
    """

    channels: int
    data: bytes
    scales: bytes


class TensorData(NamedTuple):
    """A tensor to be written.

    Attributes:
        dtype: safetensors' name of its dtype.
        shape: [rows, channels].
        chunks: Its bytes, in pieces.
    """

    dtype: str
    shape: list[int]
    chunks: Iterable[bytes]


def read_header(path: Path) -> Shard:
    """Read and check the header of a shard, without its tensors.

    Raises:
        CacheError: The file is cut short, damaged, misplaced, not a shard, or of a newer format.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            header = file.read(length) if 0 < length <= MAX_HEADER_BYTES else b""
            file_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise read_error(path, error) from error
    try:
        tensors = json.loads(header)
        text = tensors.pop("__metadata__")[METADATA_KEY]
        body = json.loads(text)
        spans = sorted(tuple(tensor["data_offsets"]) for tensor in tensors.values())
        shapes = {name: {"dtype": tensor["dtype"], "shape": tensor["shape"]} for name, tensor in tensors.items()}
        version, number = body["format"], body["number"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{path} is cut short or is no cache shard", repair_hint(path)) from error
    if not isinstance(version, int) or version > FORMAT:
        raise CacheError(f"{path} has cache format {version}, newer than {FORMAT}", "upgrade prunesid")
    if version < FORMAT:
        problem = f"{path} has cache format {version}, which is no longer read"
        raise CacheError(problem, "compress again, to another --out")
    has_no_gaps = bool(spans) and [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    # `check` is the first key of the JSON, because keys are sorted.
    end = len(CHECK_PREFIX) + CHECK_CHARACTERS
    unchecked = "{" + text[end + len('",') :]
    is_intact = text.startswith(CHECK_PREFIX) and text[len(CHECK_PREFIX) : end] == checksum(unchecked.encode())
    if not (is_intact and body["tensors"] == shapes and isinstance(number, int) and has_no_gaps):
        raise CacheError(f"{path} has a damaged header", repair_hint(path))
    if file_bytes != 8 + length + spans[-1][1]:
        raise CacheError(f"{path} is cut short", repair_hint(path))
    if number != parse_shard_number(path):
        raise misplaced_shard(path, number)
    return _build_shard(path, body, tensors, data_start=8 + length)


def _build_shard(path: Path, body: dict[str, Any], tensors: dict[str, Any], data_start: int) -> Shard:
    unknown = {name for record in body["items"] for name in record} - ITEM_FIELDS
    if unknown:
        raise CacheError(
            f"{path} has items with a field {min(unknown)!r}, which a later version added", "upgrade prunesid"
        )
    layouts = [layout_from_record(record) for record in body["layouts"]]
    locations = {
        name: TensorLocation(
            start=data_start + tensor["data_offsets"][0],
            row_bytes=DTYPE_BYTES[tensor["dtype"]] * tensor["shape"][1],
        )
        for name, tensor in tensors.items()
    }
    return Shard(
        path=path,
        number=body["number"],
        tool=body["tool"],
        run=Run(**body["run"]),
        items=tuple(Item.from_record(record, layouts) for record in body["items"]),
        tokens=locations["tokens"],
        scales=locations.get("scales"),
    )


def write_shard_file(path: Path, body: dict[str, Any], tensors: dict[str, TensorData]) -> None:
    """Write a safetensors file whose tensors need not fit into memory.

    Args:
        path: The file.
        body: The JSON of the header, without `tensors` and `check`.
        tensors: The tensors by name, in the order of the file.

    Raises:
        OSError: It cannot be written.
    """
    header, end = dict[str, Any](), 0
    for name, tensor in tensors.items():
        start, end = end, end + DTYPE_BYTES[tensor.dtype] * tensor.shape[0] * tensor.shape[1]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    shapes = {name: {"dtype": tensor.dtype, "shape": tensor.shape} for name, tensor in tensors.items()}
    body = body | {"tensors": shapes}
    metadata = {METADATA_KEY: canonical_json(body | {"check": checksum(canonical_json(body).encode())})}
    text = json.dumps({"__metadata__": metadata} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            for chunk in tensor.chunks:
                file.write(chunk)


def read_rows(shard: Shard, items: Iterable[Item]) -> Iterator[tuple[Item, PackedRows]]:
    """Read the stored rows of some items of a shard, each checked. Needs no torch.

    Raises:
        CacheError: The bytes do not match their checksum.
    """
    for item, rows in read_rows_unchecked(shard, items):
        if checksum(rows.data, rows.scales) != item.check:
            raise damaged_item(shard.path, item.source)
        yield item, rows


def read_rows_unchecked(shard: Shard, items: Iterable[Item]) -> Iterator[tuple[Item, PackedRows]]:
    """Read the stored rows of some items of a shard, without a check."""
    channels = row_channels(shard)
    try:
        with shard.path.open("rb") as file:
            for item in items:
                chunks = []
                for tensor in (shard.tokens, shard.scales):
                    if tensor is None:
                        chunks.append(b"")
                        continue
                    file.seek(tensor.start + item.rows[0] * tensor.row_bytes)
                    chunks.append(file.read((item.rows[1] - item.rows[0]) * tensor.row_bytes))
                yield item, PackedRows(channels, *chunks)
    except OSError as error:
        raise read_error(shard.path, error) from error


def read_tokens(shard: Shard, items: Sequence[Item]) -> Iterator[TokenSet]:
    """Read the token sets of some items of a shard, in the dtype of its run, each checked.

    Raises:
        CacheError: The bytes do not match their checksum.
    """
    import torch

    store, model_dtype = STORES[shard.run.store], getattr(torch, shard.run.dtype)
    dtype = {None: model_dtype, "F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}[store.dtype]
    for item, rows in read_rows(shard, items):
        count = item.rows[1] - item.rows[0]
        tokens = torch.frombuffer(bytearray(rows.data), dtype=dtype).view(count, -1)
        scales = None
        if rows.scales:
            scales = torch.frombuffer(bytearray(rows.scales), dtype=torch.float32).view(count, -1)
        yield TokenSet(
            tokens=store.unpack(tokens, scales).to(model_dtype),
            slots=item.slots,
            layout=item.layout,
            is_unpruned=item.is_unpruned,
        )


def row_channels(shard: Shard) -> int:
    """Return the number of channels of a row."""
    return shard.tokens.row_bytes // DTYPE_BYTES[stored_dtype(shard.run.store, shard.run.dtype)]
