"""Running batches that may not fit into the memory of a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


MEMINFO = Path("/proc/meminfo")
OOM_MESSAGES = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""Parts of the messages of devices that have no exception class for it."""


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out."""
    is_by_message = isinstance(error, RuntimeError) and any(text in str(error) for text in OOM_MESSAGES)
    return is_by_message or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def available_memory() -> int | None:
    """Bytes of host memory that a process can still get; None on systems other than Linux."""
    if not MEMINFO.exists():
        return None
    return 1024 * int(MEMINFO.read_text().split("MemAvailable:")[1].split()[0])


def free_memory(device: torch.device) -> int | None:
    """Bytes that tensors on a device can still get; None if that is not known."""
    if device.type == "cpu":
        return available_memory()
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + unused)


def run_in_halves_on_oom(
    work: Callable[[Sequence[T]], list[R]],
    batch: Sequence[T],
    on_too_large: Callable[[T], R],
    on_split: Callable[[], object] = lambda: None,
) -> list[R]:
    """Run `work` on a batch; if memory runs out, run it on each half, and so on.

    Args:
        work: Gives one result for each item of the batch.
        batch: The items.
        on_too_large: Gives the result for a single item that does not fit.
        on_split: Called once if the whole batch, of two items or more, did not fit.

    Returns:
        One result for each item, in order.
    """
    try:
        return work(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            return [on_too_large(batch[0])]
    # The halves run outside of the handler: the traceback of the error keeps all that the failed attempt allocated.
    on_split()
    half = len(batch) // 2
    first, second = batch[:half], batch[half:]
    return run_in_halves_on_oom(work, first, on_too_large) + run_in_halves_on_oom(work, second, on_too_large)
