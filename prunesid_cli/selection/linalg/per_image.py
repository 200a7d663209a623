"""One image a core: what is kept of an image then depends neither on its batch mates nor on the number of threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch

Result = TypeVar("Result")
ROOM = 2**25
"""Bytes that a thread holds on to, from one image to the next."""
ALIGNED = 64


def each_image(function: Callable[[int], Result], images: int, device: torch.device) -> list[Result]:
    """`function` of every image's number: on a CPU in threads of one core each, elsewhere one after the other.

    Kernels sum in another order for another number of threads, or for another batch; here both are always one.
    """

    @torch.no_grad()
    def of(row: int) -> Result:
        _own.used = 0
        try:
            return function(row)
        finally:
            _own.used = ROOM

    if device.type != "cpu":
        return [of(row) for row in range(images)]
    return list(_pool(torch.get_num_threads()).map(of, range(images)))


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    # The number of threads that torch uses inside an operation is a property of the thread that calls it.
    return ThreadPoolExecutor(threads, "prunesid-selection", torch.set_num_threads, (1,))


class _Room(threading.local):
    """A thread's memory for the image at hand; outside of `each_image` it is full."""

    memory: torch.Tensor | None = None
    used = ROOM


_own = _Room()


@contextmanager
def scratch() -> Iterator[None]:
    """What `room` gives in here is no longer needed afterwards."""
    used = _own.used
    try:
        yield
    finally:
        _own.used = used


def room(like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Uninitialised, on the device of `like`, for what does not outlive the image that `each_image` is at.

    There its memory serves the next image again: pages fresh from the operating system cost a fifth of the time of all.
    """
    dtype = dtype or like.dtype
    start, length = _own.used, math.prod(shape) * dtype.itemsize
    if like.device.type != "cpu" or start + length > ROOM:
        return like.new_empty(shape, dtype=dtype)
    if _own.memory is None:
        _own.memory = torch.empty(ROOM, dtype=torch.uint8)
    _own.used = -(-(start + length) // ALIGNED) * ALIGNED
    return _own.memory[start : start + length].view(dtype).view(shape)
