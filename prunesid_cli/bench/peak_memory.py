"""The greatest memory that this process has had since it was last asked to forget it."""

from __future__ import annotations

import sys
from pathlib import Path

FORGET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Where Linux is told to forget the peak of memory so far, and tells the present one."""
AGAIN = "5"


def forget() -> bool:
    """Count the peak from what is held now; False where the system cannot, or must not."""
    try:
        FORGET.write_text(AGAIN)
    except OSError:
        return False
    return True


def peak() -> float:
    """MB of resident memory, at most: since the peak was forgotten, or ever."""
    if STATUS.exists():
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    import resource  # Windows has none

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (1e6 if sys.platform == "darwin" else 1e3)
