"""From listed files to pixels for the tower."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from prunesid_cli.errors import MediaError, PruneSIDError
from prunesid_cli.inputs.image import hash_bytes, load_image_bytes, read_bytes
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.inputs.video.load import hash_clip, is_clip_file, load_clip
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.tokencache import CacheWriter, IndexEntry, MeasurementLog, Stamp
from prunesid_cli.types import Pixels, Provenance

R = TypeVar("R")

GRAIN = 2 * 10**9
"""Nanoseconds within which a file may change again without its time telling so."""


@dataclass(frozen=True)
class LoadedInput:
    """One input as the tower takes it, with its place in the listing. Its pictures, which may be large, are let go."""

    number: int
    provenance: Provenance
    pixels: Pixels
    stamp: Stamp | None = None

    @property
    def source(self) -> str:
        return self.provenance.source

    @property
    def regions(self) -> int:
        """Pictures, tiles and frames: what the tower sees."""
        return len(self.pixels.layout.regions)

    @property
    def bytes(self) -> int:
        return sum(one.nbytes for one in self.pixels.tensors.values())


@dataclass(frozen=True)
class CachedInput:
    """One input that is in the cache already; `newer`: the stamp of its file, where the cache has another."""

    source: str
    item: IndexEntry
    newer: Stamp | None = None
    regions: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class FailedInput:
    source: str
    error: PruneSIDError
    regions: int = 0
    bytes: int = 0


Decoded = LoadedInput | CachedInput | FailedInput


@dataclass(frozen=True)
class Cached:
    """What a cache holds of the inputs. `by_contents`: whatever size and time of change say; no writer: nothing.
    `measured`: what is known of those that it does not hold."""

    writer: CacheWriter | None = None
    by_contents: bool = False
    measured: MeasurementLog | None = None

    def unchanged(self, source: str, stamp: Stamp) -> IndexEntry | None:
        return self.writer.find_unchanged(source, stamp) if self.writer and not self.by_contents else None

    def held(self, source: str, digest: str) -> IndexEntry | None:
        return self.writer.find_by_digest(source, digest) if self.writer else None

    def recall(self, source: str) -> tuple[float, int] | None:
        """Information and tokens of an input that an earlier run measured, and did not come to write."""
        if self.measured is None or self.by_contents or self.knows(source):
            return None
        stamp = stamp_of(source)
        return self.measured.find(source, stamp) if stamp else None

    def knows(self, source: str) -> bool:
        return self.writer is not None and self.writer.index.find(source) is not None


@dataclass(frozen=True)
class Input:
    """One input to decode; `data`: of a picture. The digest of a clip may not be known yet."""

    source: str
    data: bytes | None
    digest: str
    stamp: Stamp | None


@dataclass(frozen=True)
class InputLoader:
    """Reads, decodes and preprocesses what the cache does not hold; any fault of an input becomes a record.

    load: called before anything is decoded; what that raises is the fault of no input.
    """

    pruner: Pruner
    cached: Cached = Cached()
    load: Callable[[], object] = lambda: None

    def __call__(self, number: int, found: ListedFile) -> Decoded:
        source = found.source
        if found.error:
            return FailedInput(source, found.error)
        read = _tried(source, lambda: self._read(source))
        if isinstance(read, CachedInput | FailedInput):
            return read
        self.load()
        return _tried(source, lambda: self._ready(number, read))

    def _read(self, source: str) -> CachedInput | Input:
        stamp = stamp_of(source)
        known = self.cached.unchanged(source, stamp) if stamp else None
        if known:
            return CachedInput(source, known)
        data = None if is_clip_file(source) else read_bytes(source)
        if data is None and not self.cached.knows(source):
            return Input(source, data, "", stamp)
        digest = hash_clip(source) if data is None else hash_bytes(data)
        known = self.cached.held(source, digest)
        newer = stamp if known and known.stamp != stamp else None
        return CachedInput(source, known, newer) if known else Input(source, data, digest, stamp)

    def _ready(self, number: int, read: Input) -> LoadedInput:
        source = read.source
        if read.data is None:
            self.pruner.check_clip(source)
            media = load_clip(source, self.pruner.sampling, read.digest)
        else:
            media = load_image_bytes(read.data, source, read.digest, self.pruner.min_decode_side)
        pixels = self.pruner.preprocess(media)
        return LoadedInput(number, media.provenance, pixels, read.stamp)


def _tried(source: str, work: Callable[[], R]) -> R | FailedInput:
    try:
        return work()
    except PruneSIDError as error:
        return FailedInput(source, error)
    except Exception as error:
        problem = f"{source}: the image processor failed: {type(error).__name__}: {error}"
        failure = MediaError(problem, f"see more with: prunesid ask {source} ? --debug")
        failure.__cause__ = error
        return FailedInput(source, failure)


def stamp_of(source: str) -> Stamp | None:
    """What tells whether a file was changed, before it is read. None: it was changed a moment ago, and may be again
    within the grain of the clock, or there is no such file."""
    try:
        status = os.stat(source)
    except (OSError, ValueError):  # reading it will say why
        return None
    is_settled = status.st_mtime_ns < time.time_ns() - GRAIN
    return Stamp(status.st_size, status.st_mtime_ns) if is_settled else None
