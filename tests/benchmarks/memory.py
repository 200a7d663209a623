"""Growth of this process's peak memory."""

from __future__ import annotations

from collections.abc import Callable

from prunesid_cli.bench.peak_memory import peak_megabytes, reset_peak


def growth(run: Callable[[], object]) -> float:
    """Peak memory of the process during `run`, in MB, above the memory that it held before.

    On systems other than Linux it is above the peak so far, which favours functions that need less.
    """
    reset_peak()
    before = peak_megabytes()
    run()
    return peak_megabytes() - before
