"""Work on each image of a batch alone, on a CPU with one image per core and reusable scratch memory.

A kernel sums in another order for another number of threads or for another batch. Here both are always one, so the
result of an image depends neither on the other images of its batch nor on the number of threads.
"""

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
SCRATCH_BYTES = 2**25
"""Scratch memory of a thread, in bytes. The thread keeps it from one image to the next."""
ALIGNMENT_BYTES = 64


def map_images(function: Callable[[int], Result], num_images: int, device: torch.device) -> list[Result]:
    """Call `function` with the number of each image and return the results in order.

    On a CPU the calls run in threads of one core each, elsewhere one after the other.
    """

    @torch.no_grad()
    def call(row: int) -> Result:
        _scratch.used = 0
        try:
            return function(row)
        finally:
            _scratch.used = SCRATCH_BYTES

    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        return [call(row) for row in range(num_images)]
    return list(_thread_pool(threads).map(call, range(num_images)))


@lru_cache(maxsize=4)
def _thread_pool(threads: int) -> ThreadPoolExecutor:
    # The number of threads that torch uses inside an operation is a property of the thread that calls it.
    return ThreadPoolExecutor(threads, "prunesid-selection", torch.set_num_threads, (1,))


class _Scratch(threading.local):
    """A thread's scratch memory and the number of its bytes in use; outside of `map_images` all of them are."""

    memory: torch.Tensor | None = None
    used = SCRATCH_BYTES


_scratch = _Scratch()


@contextmanager
def scratch_scope() -> Iterator[None]:
    """Free the scratch tensors that are created inside the `with` block when it ends."""
    used = _scratch.used
    try:
        yield
    finally:
        _scratch.used = used


def scratch_tensor(like: torch.Tensor, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Create an uninitialised tensor that is valid until `map_images` begins the next image.

    On a CPU inside `map_images` it is a view of the thread's scratch memory, as long as it fits: memory fresh from the
    operating system takes a fifth of all time. Elsewhere it is an ordinary tensor.

    Args:
        like: Tensor that gives the device, and the dtype unless one is named.
        shape: Shape of the new tensor.
        dtype: Its dtype.
    """
    dtype = dtype or like.dtype
    start, length = _scratch.used, math.prod(shape) * dtype.itemsize
    if like.device.type != "cpu" or start + length > SCRATCH_BYTES:
        return like.new_empty(shape, dtype=dtype)
    if _scratch.memory is None:
        _scratch.memory = torch.empty(SCRATCH_BYTES, dtype=torch.uint8)
    _scratch.used = -(-(start + length) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return _scratch.memory[start : start + length].view(dtype).view(shape)
