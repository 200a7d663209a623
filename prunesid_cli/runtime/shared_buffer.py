"""Memory that this process shares with its workers. It has no name in the file system, so none of it is ever left over.

This process hands out regions of it. A region is free again once the last array in it is gone, so no array can lose its
memory. Pages that were never written take no memory.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock

import numpy as np

ALIGNMENT_BYTES = 64


@dataclass(frozen=True)
class Region:
    """A part of a buffer, in bytes."""

    start: int
    size: int


class SharedBuffer:
    """A buffer of `size` bytes.

    Args:
        size: Its size in bytes.
        file: File descriptor of a buffer that another process made; None to make a new one.
    """

    def __init__(self, size: int, file: int | None = None) -> None:
        self.size = size
        self.file = create_anonymous_file(size) if file is None else file
        self._memory = mmap.mmap(self.file, size)
        self._free = [Region(0, size)]
        self._lock, self._released = Lock(), deque[Region]()

    def allocate(self, size: int) -> Region | None:
        """Reserve a region of at least `size` bytes; None if none is free."""
        size = aligned(max(size, 1))
        with self._lock:
            while self._released:
                region = self._released.popleft()
                if region.size == size:  # as most are
                    return region
                self._merge(region)
            for position, free in enumerate(self._free):
                if free.size >= size:
                    left = Region(free.start + size, free.size - size)
                    self._free[position : position + 1] = [left] if left.size else []
                    return Region(free.start, size)
        return None

    def release(self, region: Region) -> None:
        """Give back a region. It may be called at any moment, also by the garbage collector."""
        self._released.append(region)

    def _merge(self, region: Region) -> None:
        """Merge a region with the free ones beside it."""
        later = next((i for i, free in enumerate(self._free) if free.start > region.start), len(self._free))
        self._free.insert(later, region)
        for position in (later, later - 1):
            if 0 <= position < len(self._free) - 1:
                first, second = self._free[position : position + 2]
                if first.start + first.size == second.start:
                    self._free[position : position + 2] = [Region(first.start, first.size + second.size)]

    def write(self, region: Region, parts: Sequence[memoryview]) -> bool:
        """Copy parts into a region, one after the other, each aligned; False if they do not fit."""
        if needed_bytes(part.nbytes for part in parts) > region.size:
            return False
        start = region.start
        for part in parts:
            self._memory[start : start + part.nbytes] = part  # type: ignore[assignment]
            start += aligned(part.nbytes)
        return True

    def view(self, region: Region, lengths: Sequence[int]) -> list[np.ndarray]:
        """What `write` put into a region. The rest of it is given back now, and the region when all views are gone."""
        used = Region(region.start, needed_bytes(lengths))
        if used.size < region.size:
            self.release(Region(used.start + used.size, region.size - used.size))
        if not used.size:
            return [np.empty(0, np.uint8) for _ in lengths]
        whole, views, start = np.frombuffer(self._memory, np.uint8, used.size, used.start), [], 0
        weakref.finalize(whole, self.release, used).atexit = False  # all views refer to it
        for length in lengths:
            views.append(whole[start : start + length])
            start += aligned(length)
        return views


def aligned(size: int) -> int:
    """A size in bytes, rounded up to `ALIGNMENT_BYTES`."""
    return -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def needed_bytes(lengths: Iterable[int]) -> int:
    """Size of a region for parts of these lengths."""
    return sum(map(aligned, lengths))


def create_anonymous_file(size: int) -> int:
    """Create a file without a name and without contents; returns its descriptor, which other processes may inherit."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("prunesid")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    return file
