"""From listed files to pixels for the tower, ahead of it, in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from PIL.Image import Image
from torch import Tensor

from prunesid_cli.errors import MediaError, PruneSIDError
from prunesid_cli.listing import Found
from prunesid_cli.media import Media, load_image

T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """One input, as far as it came: pixels for the tower, or what went wrong."""

    source: str
    media: Media | None = None
    pixels: Tensor | None = None
    error: PruneSIDError | None = None


def decode(found: Found, preprocess: Callable[[Image], Tensor], held: Callable[[str, str], bool]) -> Decoded:
    """Read, decode and preprocess one image that is not `held` yet; any fault of the input becomes a record."""
    if found.error:
        return Decoded(found.source, error=found.error)
    try:
        media = load_image(found.source)
        return Decoded(found.source, media, None if held(found.source, media.digest) else preprocess(media.image))
    except PruneSIDError as error:
        return Decoded(found.source, error=error)
    except Exception as error:
        problem = f"{found.source}: the image processor failed: {type(error).__name__}: {error}"
        return Decoded(found.source, error=MediaError(problem, f"see more with: prunesid ask {found.source} ? --debug"))


def ahead(items: Iterable[T], work: Callable[[T], Decoded], depth: int) -> Iterator[Decoded]:
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
