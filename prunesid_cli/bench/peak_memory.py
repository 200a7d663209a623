"""Peak resident memory of this process, and resetting it."""

from __future__ import annotations

import sys
from pathlib import Path

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
"""Linux: the file that resets the peak, and the file that reports it."""
RESET_PEAK = "5"


def reset_peak() -> bool:
    """Count the peak from the memory held now; False if the system cannot do that or forbids it."""
    try:
        CLEAR_REFS.write_text(RESET_PEAK)
    except OSError:
        return False
    return True


def peak_megabytes() -> float:
    """Return the peak of resident memory in MB: since the last reset, or since the start of the process."""
    if STATUS.exists():
        return int(STATUS.read_text().split("VmHWM:")[1].split()[0]) / 1e3
    import resource  # Windows has none

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)
