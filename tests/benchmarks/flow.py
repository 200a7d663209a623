"""Counts what one picture runs through in `compress`: `python -m tests.benchmarks.flow`.

Prints the number of functions of the package that a run on one picture calls, from the command line to the finished
cache; how many of them every further picture calls again; their files; and the deepest call stack. Comprehensions,
lambdas and class bodies do not count as functions.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

from prunesid_cli.cli.app import run

ROOT = Path(__file__).parents[2]
PACKAGE = f"{ROOT / 'prunesid_cli'}/"


@dataclass
class Trace:
    """How often the package's functions, as (file, name), were called, and the depth of their deepest stack."""

    functions: Counter[tuple[str, str]] = field(default_factory=Counter)
    depth: int = 0
    _local: threading.local = field(default_factory=threading.local)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """A profile function; see `sys.setprofile`."""
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(PACKAGE):
            return
        stack = getattr(self._local, "depth", 0) + (1 if event == "call" else -1)
        self._local.depth = stack
        self.depth = max(self.depth, stack)
        is_function = code.co_flags & CO_OPTIMIZED and not code.co_name.startswith("<")
        if event == "call" and is_function:
            name = getattr(code, "co_qualname", f"{code.co_name}:{code.co_firstlineno}")  # since Python 3.11
            self.functions[code.co_filename.removeprefix(PACKAGE), name] += 1


def trace_calls(call: Callable[[], object]) -> Trace:
    """Records which functions of the package a call runs, in all threads that it starts."""
    trace = Trace()
    threading.setprofile(trace)
    sys.setprofile(trace)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return trace


def trace_compress(num_pictures: int) -> Trace:
    """Traces `prunesid compress` on pictures of the samples, one a batch, with the embedded model."""
    pictures = [str(ROOT / "samples" / f"scene{number}.png") for number in range(1, 1 + num_pictures)]
    with tempfile.TemporaryDirectory() as folder:
        options = ["--out", folder, "--model", "demo", "--quiet", "--workers", "0", "--batch-size", "1"]
        sys.argv = ["prunesid", "compress", *pictures, *options]
        return trace_calls(run)


def called_for_each_picture(one: Trace, five: Trace) -> set[tuple[str, str]]:
    """The functions that at least three of the four further pictures call: a few depend on the clock."""
    return {name for name, calls in five.functions.items() if calls - one.functions[name] >= 3}


def main() -> None:
    parser = argparse.ArgumentParser(description="What one picture runs through in compress.")
    parser.add_argument("--list", action="store_true", help="Print the functions, too; * marks those of each picture.")
    options = parser.parse_args()
    trace = trace_compress(1)
    each = called_for_each_picture(trace, trace_compress(5))
    if options.list:
        for file, name in sorted(trace.functions):
            print(f"{file}\t{name}{' *' * ((file, name) in each)}")
    counts = {"functions": len(trace.functions), "for each picture": len(each)}
    print(json.dumps(counts | {"files": len({file for file, _ in trace.functions}), "depth": trace.depth}))


if __name__ == "__main__":
    main()
