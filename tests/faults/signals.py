"""Trials that end runs with signals at random moments."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import time
from pathlib import Path

from tests.faults.workbench import Lost, Workbench, check_equal, check_valid, wait


def kills(folder: Path, options: argparse.Namespace) -> str:
    """Kill runs at random moments and resume them until the cache is complete; then begin the next cache."""
    bench, rng, num_kills, num_caches = Workbench(folder, options.items), random.Random(options.seed), 0, 0
    expected, seconds = bench.compress_undisturbed()
    out = folder / "cache"
    while num_kills < options.kills:
        while num_kills < options.kills:
            child = bench.start(bench.compress_command(out))
            time.sleep(seconds * rng.choice((0.2, 0.6, 1.0)) * rng.random())
            os.kill(child, signal.SIGKILL)
            if wait(child) != -signal.SIGKILL:
                break
            num_kills += 1
            check_valid(out)
        if bench.compress(out) != 0:
            raise bench.failure("cannot continue")
        check_equal(out, expected)
        shutil.rmtree(out)
        num_caches += 1
    return f"{num_kills} kills over {options.items} items, {num_caches} caches: all equal an undisturbed run"


def interrupts(folder: Path, options: argparse.Namespace) -> str:
    """Send SIGINT or SIGTERM at random moments: the batch in flight is finished, and the next run continues."""
    bench, rng, num_interrupts = Workbench(folder, options.items), random.Random(options.seed), 0
    expected, seconds = bench.compress_undisturbed()
    out, items_before = folder / "cache", 0
    while num_interrupts < options.kills:
        child = bench.start(bench.compress_command(out))
        time.sleep(seconds * 0.3 * rng.random())
        os.kill(child, rng.choice((signal.SIGINT, signal.SIGTERM)))
        code = wait(child)
        if code not in (0, 130, -signal.SIGINT, -signal.SIGTERM):  # the last two: before there was a handler
            raise bench.failure(f"an interrupted run ends with code {code}")
        num_interrupts += code != 0
        items = check_valid(out)
        if items < items_before:
            raise Lost(f"there were {items_before} items, now there are {items}")
        items_before = items
        if code == 0:
            check_equal(out, expected)
            shutil.rmtree(out)
            items_before = 0
    if bench.compress(out) != 0:
        raise bench.failure("cannot continue")
    check_equal(out, expected)
    return f"{num_interrupts} interrupts over {options.items} items: all equal an undisturbed run"
