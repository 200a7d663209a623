"""One image a core: what is kept of an image then depends neither on its batch mates nor on the number of threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Result = TypeVar("Result")


def each_image(function: Callable[[int], Result], images: int, device: torch.device) -> list[Result]:
    """`function` of every image's number: on a CPU in threads of one core each, elsewhere one after the other.

    Kernels sum in another order for another number of threads, or for another batch; here both are always one.
    """

    @torch.no_grad()
    def of(row: int) -> Result:
        return function(row)

    if device.type != "cpu":
        return [of(row) for row in range(images)]
    return list(_pool(torch.get_num_threads()).map(of, range(images)))


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    # The number of threads that torch uses inside an operation is a property of the thread that calls it.
    return ThreadPoolExecutor(threads, "prunesid-selection", torch.set_num_threads, (1,))
