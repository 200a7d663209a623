"""What a cache survives: kills, interrupts, full disks, damaged files, concurrent writers.

Each run of `prunesid` is a child process, forked from one that has imported everything. Kills are SIGKILL, at random
moments, or before the n-th file operation on the cache for every n. What they leave must be a valid cache at any time.
When it is resumed, it must equal, byte for byte, the cache of an undisturbed run. The last line says what was tried.
The exit code is 1 if anything was lost. Inputs are decoded in the main process; to try it with worker processes, set
PRUNESID_WORKERS=2.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.damage import disk, mutations, writers
from tests.faults.kill_points import gc, points, shards
from tests.faults.signals import interrupts, kills
from tests.faults.workbench import Lost

TRIALS = {
    "disk": disk,
    "gc": gc,
    "interrupts": interrupts,
    "kills": kills,
    "points": points,
    "mutations": mutations,
    "shards": shards,
    "writers": writers,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trial", choices=sorted(TRIALS))
    parser.add_argument("--items", type=int, default=300, help="number of pictures")
    parser.add_argument("--kills", type=int, default=10, help="number of kills or interrupts")
    parser.add_argument(
        "--count", type=int, default=3, help="number of mutations, pairs of writers, disks or partitions"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    import prunesid_cli.pipeline.compress  # noqa: F401  (imported here once, not by each child)
    from prunesid_cli.models import (
        llava,  # noqa: F401
        load_family,  # noqa: F401
    )

    with tempfile.TemporaryDirectory() as folder:
        try:
            print(TRIALS[options.trial](Path(folder), options))
        except Lost as lost:
            print(f"LOST: {lost}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
