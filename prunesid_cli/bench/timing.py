"""Lap timer that waits for the device and reads the memory of each lap."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from prunesid_cli.bench.peak_memory import peak_megabytes, reset_peak

SYNCHRONIZE: dict[str, Callable[[torch.device], object]] = {
    "cuda": lambda device: torch.cuda.synchronize(device),
    "mps": lambda device: torch.mps.synchronize(),
}
"""Device type -> how to wait for a device that works asynchronously."""


@dataclass(frozen=True)
class Lap:
    """Time and memory of one lap; memory is None where it is not known.

    Attributes:
        seconds: Duration.
        grown_mb: Peak of memory above the memory held at the start, in MB.
        peak_mb: Peak of memory, in MB.
    """

    seconds: float
    grown_mb: float | None = None
    peak_mb: float | None = None


class LapTimer:
    """Times consecutive laps. A lap ends when the device has finished its work; reading memory belongs to no lap.

    On CUDA, memory is what torch's allocator has handed out. On a CPU under Linux, it is the resident memory of the
    process. There, memory that the allocator kept from earlier laps is reused invisibly, so the first laps are the most
    informative.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._start_mb: float | None = None
        self._start_time = 0.0

    @property
    def memory_source(self) -> str:
        """What `grown_mb` and `peak_mb` measure."""
        if self.device.type == "cuda":
            return f"tensors on {self.device}, weights included, by torch's allocator"
        if self.device.type == "cpu" and reset_peak():
            return "resident memory of the process"
        return "not known"

    def start(self) -> None:
        """Begin a lap."""
        self._wait()
        self._start_mb = self._reset_memory()
        self._start_time = time.perf_counter()

    def lap(self) -> Lap:
        """End the current lap, and begin the next one."""
        self._wait()
        seconds = time.perf_counter() - self._start_time
        grown_mb = peak_mb = None
        if self._start_mb is not None:
            peak_mb = self._peak_memory()
            grown_mb = peak_mb - self._start_mb
        self.start()
        return Lap(seconds, grown_mb, peak_mb)

    def _wait(self) -> None:
        synchronize = SYNCHRONIZE.get(self.device.type)
        if synchronize:
            synchronize(self.device)

    def _reset_memory(self) -> float | None:
        """Count the peak from now on; returns the MB held now, if known."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return torch.cuda.memory_allocated(self.device) / 1e6
        return peak_megabytes() if self.device.type == "cpu" and reset_peak() else None

    def _peak_memory(self) -> float:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return peak_megabytes()
