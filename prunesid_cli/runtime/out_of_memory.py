"""Work on batches that may not fit into a device's memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


AVAILABLE = Path("/proc/meminfo")
SAID = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""By the errors of devices that have no class for it."""


def is_out_of_memory(error: Exception) -> bool:
    is_said = isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)
    return is_said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def available_memory() -> int | None:
    """Bytes that Linux could give to a process; None where that is not told."""
    if not AVAILABLE.exists():
        return None
    return 1024 * int(AVAILABLE.read_text().split("MemAvailable:")[1].split()[0])


def run_in_halves_on_oom(
    work: Callable[[Sequence[T]], list[R]],
    batch: Sequence[T],
    alone: Callable[[T], R],
    told: Callable[[], object] = lambda: None,
) -> list[R]:
    """`work` on a batch, in halves when it does not fit into the device's memory; `alone`: on one that never does;
    `told`: called once where the whole batch did not fit, though it was of several."""
    try:
        return work(batch)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(batch) == 1:
            return [alone(batch[0])]
    # Outside of the handler: its traceback holds on to all that the failed attempt had allocated.
    told()
    half = len(batch) // 2
    return run_in_halves_on_oom(work, batch[:half], alone) + run_in_halves_on_oom(work, batch[half:], alone)
