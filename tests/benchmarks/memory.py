"""What a piece of work adds to the greatest memory that this process has had."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

FORGET = Path("/proc/self/clear_refs")
"""Where Linux is told to forget the peak of memory so far."""


def growth(run: Callable[[], object]) -> float:
    """MB that the process holds at most while it runs, beyond what it held before (on Linux; elsewhere beyond what it
    ever held, which flatters the leaner)."""
    if FORGET.exists():
        FORGET.write_text("5")
    before = _peak()
    run()
    return _peak() - before


def _peak() -> float:
    if FORGET.exists():
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1e6 if sys.platform == "darwin" else 1e3)
