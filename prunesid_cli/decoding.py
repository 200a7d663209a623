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
from prunesid_cli.tokencache import Item
from prunesid_cli.types import Pixels

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Ready:
    """One input as the tower takes it. The picture itself, which may be large, is let go."""

    source: str
    digest: str
    size: tuple[int, int]
    notes: tuple[str, ...]
    pixels: Pixels


@dataclass(frozen=True)
class Held:
    """One input that is in the cache already."""

    source: str
    item: Item


@dataclass(frozen=True)
class Failed:
    source: str
    error: PruneSIDError


Decoded = Ready | Held | Failed


def decode(found: Found, preprocess: Callable[[Media], Pixels], held: Callable[[str, str], Item | None]) -> Decoded:
    """Read, decode and preprocess one image that is not `held` yet; any fault of the input becomes a record."""
    source = found.source
    if found.error:
        return Failed(source, found.error)
    try:
        data = read_bytes(source)
        digest = digest_of(data)
        if item := held(source, digest):
            return Held(source, item)
        media = load_image_bytes(data, source, digest)
        return Ready(source, media.digest, media.size, media.notes, preprocess(media))
    except PruneSIDError as error:
        return Failed(source, error)
    except Exception as error:
        problem = f"{source}: the image processor failed: {type(error).__name__}: {error}"
        failure = MediaError(problem, f"see more with: prunesid ask {source} ? --debug")
        failure.__cause__ = error
        return Failed(source, failure)


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
