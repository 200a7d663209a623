"""A stopwatch that waits for the device, and knows what memory each lap took."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from prunesid_cli.bench.peak_memory import forget, peak

if TYPE_CHECKING:
    from collections.abc import Callable

WAITS: dict[str, Callable[[torch.device], object]] = {
    "cuda": lambda device: torch.cuda.synchronize(device),
    "mps": lambda device: torch.mps.synchronize(),
}
"""What devices are waited for by, that work on while the host goes on."""


@dataclass(frozen=True)
class Lap:
    """seconds; grown_mb: memory held at most beyond what was held at its start; peak_mb: held at most. None where that
    is not known."""

    seconds: float
    grown_mb: float | None = None
    peak_mb: float | None = None


class Meter:
    """Laps begin and end when the device has done all that it was given; reading memory is part of none.

    On CUDA memory is what torch's allocator has handed out. On a CPU with Linux it is the resident memory of the
    process, in which what the allocator kept of earlier laps hides what it gives out again: the first laps tell most.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.held: float | None = None
        self.began = 0.0

    @property
    def memory(self) -> str:
        """What `grown_mb` and `peak_mb` are of."""
        if self.device.type == "cuda":
            return f"tensors on {self.device}, weights included, by torch's allocator"
        if self.device.type == "cpu" and forget():
            return "resident memory of the process"
        return "not known"

    def wait(self) -> None:
        WAITS.get(self.device.type, lambda device: None)(self.device)

    def begin(self) -> None:
        self.wait()
        self.held = self._held()
        self.began = time.perf_counter()

    def lap(self) -> Lap:
        """What happened since the last one, or the beginning; the next one begins."""
        self.wait()
        seconds = time.perf_counter() - self.began
        most = self._most() if self.held is not None else None
        grown = most - self.held if most is not None and self.held is not None else None
        self.begin()
        return Lap(seconds, grown, most)

    def _held(self) -> float | None:
        """MB held now; the peak is counted from here."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device) / 1e6
        return peak() if self.device.type == "cpu" and forget() else None

    def _most(self) -> float:
        return torch.cuda.max_memory_allocated(self.device) / 1e6 if self.device.type == "cuda" else peak()
