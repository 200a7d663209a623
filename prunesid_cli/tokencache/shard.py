"""Reading and writing one shard file: its header at once, its rows on demand, each checked against its checksum.

The format is specified in format.py.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from prunesid_cli.errors import CacheError
from prunesid_cli.tokencache.cache_errors import damaged_item, misplaced_shard, mixed_runs, read_error, repair_hint
from prunesid_cli.tokencache.cache_file import (
    PARSE_ERRORS,
    UnknownFieldError,
    build_record,
    open_file,
    parse_json,
    split_check,
)
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
    shard_name,
)
from prunesid_cli.tokencache.quantization import DTYPE_BYTES, SAFETENSORS_DTYPES, STORES, stored_dtype
from prunesid_cli.types import TokenSet

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library."""
MAX_CACHED_HEADERS = 8
"""Shards whose headers are kept in memory for lookups of single items."""


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


@dataclass(frozen=True)
class TensorRecord:
    """A tensor as a safetensors header describes it: dtype, shape, and offsets of its first byte and its end."""

    dtype: str
    shape: tuple[int, int]
    data_offsets: tuple[int, int]


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
        with open_file(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            header = file.read(length) if 0 < length <= min(MAX_HEADER_BYTES, file_bytes) else b""
    except OSError as error:
        raise read_error(path, error) from error
    try:
        tensors = parse_json(header)
        text = tensors.pop("__metadata__")[METADATA_KEY]
        body = parse_json(text)
        version = body["format"]
    except PARSE_ERRORS as error:
        raise CacheError(f"{path} is cut short or is no cache shard", repair_hint(path)) from error
    if not isinstance(version, int) or version > FORMAT:
        raise CacheError(f"{path} has cache format {version}, newer than {FORMAT}", "upgrade prunesid")
    if version < FORMAT:
        problem = f"{path} has cache format {version}, which is no longer read"
        raise CacheError(problem, "compress again, to another --out")
    try:
        check, checked = split_check(text)
        if check != checksum(checked):
            raise ValueError("its checksum is wrong")
        shard, end = _build_shard(path, body, tensors, data_start=8 + length)
    except UnknownFieldError as error:
        raise CacheError(f"{path} has {error}, which a later version added", "upgrade prunesid") from error
    except PARSE_ERRORS as error:
        raise CacheError(f"{path} has a damaged header: {error}", repair_hint(path)) from error
    if file_bytes != end:
        raise CacheError(f"{path} is cut short", repair_hint(path))
    if shard.number != parse_shard_number(path):
        raise misplaced_shard(path, shard.number)
    return shard


def _build_shard(path: Path, body: dict[str, Any], tensors: dict[str, Any], data_start: int) -> tuple[Shard, int]:
    """Build a shard from the JSON of its header. Also returns where the file must end.

    Raises:
        PARSE_ERRORS: The parts of the header are of wrong types, or do not fit
            each other.
    """
    run = build_record(body["run"], Run)
    layouts = {number: layout_from_record(record) for number, record in enumerate(body["layouts"])}
    items = tuple(Item.from_record(record, layouts) for record in body["items"])
    number, tool = body["number"], body["tool"]
    is_known = run.store in STORES and run.dtype in SAFETENSORS_DTYPES
    if not (type(number) is int and isinstance(tool, str) and is_known):
        raise ValueError("its number, tool, store or dtype cannot be right")
    records = {name: build_record(tensor, TensorRecord) for name, tensor in tensors.items()}
    num_rows, channels = records["tokens"].shape
    groups = STORES[run.store].scales_per_row(channels)
    shapes = {"tokens": {"dtype": stored_dtype(run.store, run.dtype), "shape": [num_rows, channels]}}
    if groups:
        shapes["scales"] = {"dtype": "F32", "shape": [num_rows, groups]}
    locations, end = dict[str, TensorLocation](), 0
    for name, record in sorted(records.items(), key=lambda pair: pair[1].data_offsets):
        row_bytes = DTYPE_BYTES[record.dtype] * record.shape[1]
        locations[name] = TensorLocation(start=data_start + end, row_bytes=row_bytes)
        start, end = end, end + row_bytes * num_rows
        if record.data_offsets != (start, end) or row_bytes <= 0:
            raise ValueError(f"the offsets of {name} cannot be right")
    described = {name: {"dtype": record.dtype, "shape": [*record.shape]} for name, record in records.items()}
    if not (body["tensors"] == described == shapes) or num_rows < 0:
        raise ValueError("its tensors are not those of its run")
    own_rows = [item.rows for item in items if item.shard is None]
    edges = [0, *(end for _, end in own_rows)]
    if [start for start, _ in own_rows] != edges[:-1] or edges[-1] != num_rows:
        raise ValueError("the rows of its items do not follow each other")
    if any(item.shard is not None and item.shard > number for item in items):
        raise ValueError("a copy cannot be of a later shard")
    shard = Shard(
        path=path,
        number=number,
        tool=tool,
        run=run,
        items=items,
        tokens=locations["tokens"],
        scales=locations.get("scales"),
    )
    return shard, data_start + end


def write_shard_file(file: BinaryIO, body: dict[str, Any], tensors: dict[str, TensorData]) -> dict[str, TensorLocation]:
    """Write a safetensors file whose tensors need not fit into memory.

    Args:
        file: The file, empty.
        body: The JSON of the header, without `tensors` and `check`.
        tensors: The tensors by name, in the order of the file.

    Returns:
        Where each tensor is.

    Raises:
        OSError: It cannot be written.
    """
    header, end = dict[str, Any](), 0
    for name, tensor in tensors.items():
        start, end = end, end + DTYPE_BYTES[tensor.dtype] * tensor.shape[0] * tensor.shape[1]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [start, end]}
    shapes = {name: {"dtype": tensor.dtype, "shape": tensor.shape} for name, tensor in tensors.items()}
    checked = canonical_json(body | {"tensors": shapes})
    # "check" is the first of the sorted names. JSON of many items takes long, so it is made once.
    metadata = {METADATA_KEY: f'{{"check":"{checksum(checked.encode())}",{checked[1:]}'}
    text = json.dumps({"__metadata__": metadata} | header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    locations = dict[str, TensorLocation]()
    for name, tensor in tensors.items():
        locations[name] = TensorLocation(file.tell(), DTYPE_BYTES[tensor.dtype] * tensor.shape[1])
        for chunk in tensor.chunks:
            file.write(chunk)
    return locations


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
    """Read the stored rows of some items of a shard, without a check. Those of copies may be in other shards."""
    channels, files = row_channels(shard), dict[int, BinaryIO]()
    with ExitStack() as opened:
        for item in items:
            holder = shard if item.shard in (None, shard.number) else read_neighbor(shard, item.shard)
            try:
                file = files.get(holder.number)
                if file is None:
                    files[holder.number] = file = opened.enter_context(open_file(holder.path))
                chunks = []
                for tensor in (holder.tokens, holder.scales):
                    if tensor is None:
                        chunks.append(b"")
                        continue
                    file.seek(tensor.start + item.rows[0] * tensor.row_bytes)
                    chunks.append(file.read((item.rows[1] - item.rows[0]) * tensor.row_bytes))
            except OSError as error:
                raise read_error(holder.path, error) from error
            yield item, PackedRows(channels, *chunks)


def read_neighbor(shard: Shard, number: int) -> Shard:
    """Read the header of another shard of the same cache.

    Raises:
        CacheError: It is damaged or missing, or of other settings.
    """
    path = shard.path.with_name(shard_name(number))
    neighbor = read_header_cached(path)
    if neighbor.run != shard.run or row_channels(neighbor) != row_channels(shard):
        raise mixed_runs(path, shard.path)
    return neighbor


def read_header_cached(path: Path) -> Shard:
    """Read the header of a shard, or take it from memory. A shard that has changed is read again.

    Raises:
        CacheError: It is damaged or missing.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise read_error(path, error) from error
    return _read_version(path, status.st_size, status.st_mtime_ns, status.st_ino)


@lru_cache(MAX_CACHED_HEADERS)
def _read_version(path: Path, num_bytes: int, mtime_ns: int, inode: int) -> Shard:
    """Read the header of a version of a shard, which its size, time and inode tell from others."""
    return read_header(path)


def read_tokens(shard: Shard, items: Sequence[Item]) -> Iterator[TokenSet]:
    """Read the token sets of some items of a shard, in the dtype of its run, each checked.

    Raises:
        CacheError: The bytes do not match their checksum, or a token has NaN or infinity.
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
        tokens = store.unpack(tokens, scales).to(model_dtype)
        if not torch.isfinite(tokens).all():
            raise damaged_item(shard.path, item.source)
        yield TokenSet(
            tokens=tokens,
            slots=item.slots,
            layout=item.layout,
            is_unpruned=item.is_unpruned,
        )


def row_channels(shard: Shard) -> int:
    """Return the number of channels of a row."""
    return shard.tokens.row_bytes // DTYPE_BYTES[stored_dtype(shard.run.store, shard.run.dtype)]
