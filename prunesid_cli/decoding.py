"""From listed files to pixels for the tower, ahead of it, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from prunesid_cli.errors import MediaError, PruneSIDError
from prunesid_cli.listing import Found
from prunesid_cli.media import Media, digest_of, load_image_bytes, read_bytes
from prunesid_cli.pruner import Pruner
from prunesid_cli.tokencache import Known
from prunesid_cli.types import Pixels
from prunesid_cli.video.reading import clip_digest, is_clip, load_clip

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Ready:
    """One input as the tower takes it. Its pictures, which may be large, are let go."""

    source: str
    digest: str
    size: tuple[int, int]
    notes: tuple[str, ...]
    pixels: Pixels
    sampling: str = ""
    decoder: str = ""


@dataclass(frozen=True)
class Held:
    """One input that is in the cache already."""

    source: str
    item: Known


@dataclass(frozen=True)
class Failed:
    source: str
    error: PruneSIDError


Decoded = Ready | Held | Failed


def decode(found: Found, pruner: Pruner, held: Callable[[str, str], Known | None]) -> Decoded:
    """Read, decode and preprocess one input that is not `held` yet; any fault of it becomes a record."""
    source = found.source
    if found.error:
        return Failed(source, found.error)
    try:
        media = _clip(source, pruner, held) if is_clip(source) else _picture(source, pruner, held)
        if isinstance(media, Held):
            return media
        pixels = pruner.preprocess(media)
        return Ready(source, media.digest, media.size, media.notes, pixels, media.sampling, media.decoder)
    except PruneSIDError as error:
        return Failed(source, error)
    except Exception as error:
        problem = f"{source}: the image processor failed: {type(error).__name__}: {error}"
        failure = MediaError(problem, f"see more with: prunesid ask {source} ? --debug")
        failure.__cause__ = error
        return Failed(source, failure)


def _picture(source: str, pruner: Pruner, held: Callable[[str, str], Known | None]) -> Media | Held:
    data = read_bytes(source)
    digest = digest_of(data)
    item = held(source, digest)
    return Held(source, item) if item else load_image_bytes(data, source, digest, pruner.enough)


def _clip(source: str, pruner: Pruner, held: Callable[[str, str], Known | None]) -> Media | Held:
    pruner.check_clip(source)
    digest = clip_digest(source)
    item = held(source, digest)
    return Held(source, item) if item else load_clip(source, pruner.sampling, digest)


def ahead(items: Iterable[T], work: Callable[[T], R], depth: int) -> Iterator[R]:
    """Map in threads, in order, at most `depth` items in advance."""
    with ThreadPoolExecutor(2) as pool:
        source = iter(items)
        waiting = [pool.submit(work, item) for item in islice(source, depth)]
        try:
            while waiting:
                done = waiting.pop(0).result()
                waiting += [pool.submit(work, item) for item in islice(source, 1)]
                yield done
        finally:
            for future in waiting:
                future.cancel()


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
