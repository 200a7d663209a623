"""What a piece of work adds to the greatest memory that this process has had."""

from __future__ import annotations

from collections.abc import Callable

from prunesid_cli.bench.peak_memory import forget, peak


def growth(run: Callable[[], object]) -> float:
    """MB that the process holds at most while it runs, beyond what it held before (on Linux; elsewhere beyond what it
    ever held, which flatters the leaner)."""
    forget()
    before = peak()
    run()
    return peak() - before
