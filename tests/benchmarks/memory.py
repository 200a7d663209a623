"""What a piece of work adds to the greatest memory that this process has had."""

from __future__ import annotations

from collections.abc import Callable

from prunesid_cli.bench.peak_memory import peak_megabytes, reset_peak


def growth(run: Callable[[], object]) -> float:
    """MB that the process holds at most while it runs, beyond what it held before (on Linux; elsewhere beyond what it
    ever held, which flatters the leaner)."""
    reset_peak()
    before = peak_megabytes()
    run()
    return peak_megabytes() - before
