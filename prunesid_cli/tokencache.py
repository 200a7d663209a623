"""The cache: kept visual tokens on disk, from which prompts are answered with neither pixels nor vision tower.

Format 1
--------
1. A cache is a folder with files `prunesid-NNNNN.safetensors` (shards, NNNNN counting from 00000) and, where inputs
   failed, `failures.jsonl`. Other files are not the cache's.
2. A shard holds one tensor, `tokens` [R, C]: the kept tokens of its items, one after the other.
3. A shard's metadata has one key, `prunesid`: JSON with sorted keys. (Several metadata keys would be written in
   random order; one makes equal caches equal in every byte.)
4. `format`: 1. `tool`: version that wrote it. `run`: what one cache has in common: `model`, `revision`, `family`,
   `method`, `keep`, `dynamic`, `dtype`. `items`: a list of items. `tokens`: `dtype` and `shape` of the tensor.
   `check`: blake2b-128, in hex, of the JSON without it.
5. An item has `source` (as it was named), `digest` (sha256 of the input's bytes), `size` [width, height], `grid` [rows,
   columns], `total` (visual tokens that the stock model reads), `kept` (indices in raster order of the rows, -1 for the
   CLS token), `rows` [start, end) in `tokens`, `phi` (information, 1 - rho), `notes`, and `check`: blake2b-128 of the
   bytes of its rows.
6. Of several items with one source, the last of the last shard counts.
7. A shard is written under another name in the same folder, synced, renamed, and the folder synced: it is there whole
   or not at all. Readers accept formats up to their own and refuse newer ones.
8. `failures.jsonl`: one object a line with `source`, `error`, `hint`: inputs that failed and are not in the cache.
   Replaced as a whole at the end of a run.

Headers are read here without torch, so that listing a cache starts at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesid_cli.errors import CacheError, PruneSIDError
from prunesid_cli.types import TokenSet

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
KEY = "prunesid"
PATTERN = "prunesid-*.safetensors"
FAILURES = "failures.jsonl"
DTYPES = {"torch.float32": "F32", "torch.bfloat16": "BF16", "torch.float16": "F16"}
LARGEST_HEADER = 100_000_000
"""safetensors' own limit, in bytes."""


@dataclass(frozen=True)
class Run:
    """What all items of a cache have in common. A cache is never continued with another."""

    model: str
    revision: str
    family: str
    method: str
    keep: str
    dynamic: bool
    dtype: str


@dataclass(frozen=True)
class Item:
    """One input in a cache, as its shard's header tells it; `rows` are those of the shard's tensor."""

    source: str
    digest: str
    size: tuple[int, int]
    grid: tuple[int, int]
    total: int
    kept: tuple[int, ...]
    rows: tuple[int, int]
    phi: float
    notes: tuple[str, ...]
    check: str

    @classmethod
    def read(cls, record: dict[str, Any]) -> Item:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        return cls(**fields)


@dataclass(frozen=True)
class Shard:
    """A shard's header; `data` is where its tensors begin in the file."""

    path: Path
    tool: str
    run: Run
    items: tuple[Item, ...]
    shape: tuple[int, int]
    dtype: str
    data: int


@dataclass(frozen=True)
class Cache:
    """The headers of all shards of a folder, read and checked."""

    folder: Path
    shards: tuple[Shard, ...]

    @property
    def run(self) -> Run | None:
        return self.shards[0].run if self.shards else None

    def items(self) -> dict[str, tuple[Shard, Item]]:
        """Source -> where it is, in the order in which sources first came."""
        return {item.source: (shard, item) for shard in self.shards for item in shard.items}

    def failures(self) -> list[dict[str, str]]:
        path = self.folder / FAILURES
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.path.stat().st_size for shard in self.shards)


def open_cache(folder: str | Path) -> Cache:
    """Read the headers of a cache.

    Raises:
        CacheError: it is no cache, is damaged, is of a newer format, or mixes runs.
    """
    folder = Path(folder)
    shards = tuple(read_header(path) for path in shard_paths(folder))
    for shard in shards[1:]:
        if shard.run != shards[0].run:
            raise CacheError(f"{shard.path} is of another run than {shards[0].path.name}", hint="move it elsewhere")
    return Cache(folder, shards)


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a cache in order, unread.

    Raises:
        CacheError: it is no cache.
    """
    hint = "make one with: prunesid compress IMAGES --out CACHE"
    if not folder.is_dir():
        raise CacheError(f"no such cache: {folder}", hint)
    paths = sorted(folder.glob(PATTERN))
    if not paths and not (folder / FAILURES).exists():
        raise CacheError(f"not a prunesid cache: {folder}", hint)
    return paths


def read_header(path: Path) -> Shard:
    """Read and check one shard's header; not a byte of its tensors.

    Raises:
        CacheError: cut short, damaged, not a shard, or of a newer format.
    """
    again = f"delete {path} and run the same compress again"
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(length) if 0 < length <= LARGEST_HEADER else b""
    try:
        tensors = json.loads(header)
        body = json.loads(tensors.pop("__metadata__")[KEY])
        tokens = tensors["tokens"]
        layout = {"dtype": tokens["dtype"], "shape": tokens["shape"]}
        start_of_tokens, end = tokens["data_offsets"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CacheError(f"{path} is cut short or is no cache shard", again) from error
    if not isinstance(body.get("format"), int) or body["format"] > FORMAT:
        raise CacheError(f"{path} has cache format {body.get('format')}, newer than {FORMAT}", "upgrade prunesid")
    if (
        body.pop("check", None) != _check(_canonical(body).encode())
        or body["tokens"] != layout
        or "tokens" not in tensors
    ):
        raise CacheError(f"{path} has a damaged header", again)
    if path.stat().st_size != 8 + length + end:
        raise CacheError(f"{path} is cut short", again)
    items = tuple(Item.read(record) for record in body["items"])
    return Shard(path, body["tool"], Run(**body["run"]), items, tuple(tokens["shape"]), tokens["dtype"], 8 + length)


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
                yield TokenSet(
                    _checked(tokens[item.rows[0] : item.rows[1]], item, shard), item.kept, item.grid, item.total
                )
    except (OSError, SafetensorError) as error:
        raise CacheError(
            f"cannot read {shard.path}: {error}", hint=f"prunesid cache verify {shard.path.parent}"
        ) from error


def _checked(tokens: Tensor, item: Item, shard: Shard) -> Tensor:
    if _check(_bytes(tokens)) != item.check:
        raise CacheError(
            f"the tokens of {item.source} in {shard.path} are damaged",
            hint=f"delete {shard.path} and run the same compress again",
        )
    return tokens


def verify(shard: Shard) -> list[Item]:
    """The items of a shard whose bytes are not those that were written."""
    width = (shard.path.stat().st_size - shard.data) // max(shard.shape[0], 1)
    bad = []
    with shard.path.open("rb") as file:
        for item in shard.items:
            file.seek(shard.data + item.rows[0] * width)
            if _check(file.read((item.rows[1] - item.rows[0]) * width)) != item.check:
                bad.append(item)
    return bad


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _check(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _bytes(tokens: Tensor) -> bytes:
    import torch

    raw: bytes = tokens.contiguous().view(torch.uint8).numpy().tobytes()
    return raw


@dataclass(frozen=True)
class Entry:
    """An item on its way into a cache."""

    source: str
    digest: str
    size: tuple[int, int]
    tokens: TokenSet
    phi: float
    notes: tuple[str, ...]


class CacheWriter:
    """Collects entries and writes a shard whenever enough have come; `close` writes the rest and the failures.

    Raises:
        CacheError: the folder cannot be written, or holds a cache of another run.
    """

    def __init__(self, folder: Path, run: Run, tool: str, shard_items: int = 512) -> None:
        self.folder, self.run, self.tool, self.shard_items = folder, run, tool, shard_items
        self.entries: list[Entry] = []
        _writable(folder)
        known = any(folder.glob(PATTERN)) or (folder / FAILURES).exists()
        self.cache = open_cache(folder) if known else Cache(folder, ())
        if self.cache.run and self.cache.run != run:
            raise CacheError(f"{folder} holds a cache {_difference(self.cache.run, run)}", hint="name another --out")
        self.next = 1 + max((int(s.path.stem.rsplit("-", 1)[1]) for s in self.cache.shards), default=-1)
        self.failed = {record["source"]: record for record in self.cache.failures()}
        self.done = {source: item for source, (_, item) in self.cache.items().items()}

    def holds(self, source: str, digest: str) -> bool:
        """Whether this very input is in the cache already."""
        return source in self.done and self.done[source].digest == digest

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.settle(entry.source)
        if len(self.entries) >= self.shard_items:
            self.flush()

    def fail(self, source: str, error: PruneSIDError) -> None:
        self.failed[source] = {"source": source, "error": error.problem, "hint": error.hint}

    def settle(self, source: str) -> None:
        """An input that failed in an earlier run, and is in the cache now, is a failure no more."""
        self.failed.pop(source, None)

    def flush(self) -> None:
        """Write what has come as a shard, durably."""
        if self.entries:
            write_shard(self.folder / f"prunesid-{self.next:05d}.safetensors", self.run, self.tool, self.entries)
            self.next, self.entries = self.next + 1, []

    def close(self) -> None:
        self.flush()
        path = self.folder / FAILURES
        if self.failed:
            lines = "".join(_canonical(record) + "\n" for record in self.failed.values())
            _replace(path, lambda beside: beside.write_text(lines, encoding="utf-8") and None)
        else:
            path.unlink(missing_ok=True)


def write_shard(path: Path, run: Run, tool: str, entries: Sequence[Entry]) -> None:
    """Write entries as one shard, whole or not at all."""
    import torch
    from safetensors.torch import save_file

    items, start = [], 0
    for entry in entries:
        end = start + len(entry.tokens.indices)
        items.append(_record(entry, (start, end)))
        start = end
    tokens = torch.cat([entry.tokens.tokens.cpu() for entry in entries])
    layout = {"dtype": DTYPES[str(tokens.dtype)], "shape": list(tokens.shape)}
    body = {"format": FORMAT, "tool": tool, "run": asdict(run), "items": items, "tokens": layout}
    metadata = {KEY: _canonical(body | {"check": _check(_canonical(body).encode())})}
    _replace(path, lambda beside: save_file({"tokens": tokens}, beside, metadata))


def _record(entry: Entry, rows: tuple[int, int]) -> dict[str, Any]:
    return {
        "source": entry.source,
        "digest": entry.digest,
        "size": entry.size,
        "grid": entry.tokens.grid,
        "total": entry.tokens.total,
        "kept": entry.tokens.indices,
        "rows": rows,
        "phi": entry.phi,
        "notes": entry.notes,
        "check": _check(_bytes(entry.tokens.tokens.cpu())),
    }


def _replace(path: Path, write: Any) -> None:
    """Write beside, sync, rename, sync the folder. What was there before stays until the new is whole."""
    from safetensors import SafetensorError

    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        _sync(beside)
        os.chmod(beside, 0o666 & ~_umask())
        beside.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise CacheError(f"cannot write {path}: {error}", hint="free some space, then run the same command") from error
    finally:
        beside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no handle of a folder that could be synced
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """There is no way to read it but to set it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _writable(folder: Path) -> None:
    """Find out before a model is loaded. Sweeps what an interrupted run left half written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".prunesid-*.part"):
            left.unlink()
        probe = folder / f".prunesid-probe.{os.getpid()}.part"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CacheError(f"cannot write to {folder}: {error.strerror}", hint="name another --out") from error


def _difference(old: Run, new: Run) -> str:
    """The first field in which two runs differ, in words."""
    before, after = asdict(old), asdict(new)
    field = next(name for name in before if before[name] != after[name])
    return f"made with {field} {before[field]}, not {after[field]}"
