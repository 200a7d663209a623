"""Counts what one picture runs through in `compress`: `python -m tests.benchmarks.flow`.

Prints the number of functions of the package that are called, their files, and the deepest call stack. Comprehensions,
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
    """The package's functions that were called, as (file, name), and the depth of their deepest stack."""

    functions: set[tuple[str, str]] = field(default_factory=set)
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
            self.functions.add((code.co_filename.removeprefix(PACKAGE), name))


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


def trace_compress(picture: Path) -> Trace:
    """Traces `prunesid compress PICTURE` with the embedded model."""
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["prunesid", "compress", str(picture), "--out", folder, "-m", "demo", "--quiet", "--workers", "0"]
        return trace_calls(run)


def main() -> None:
    parser = argparse.ArgumentParser(description="What one picture runs through in compress.")
    parser.add_argument("--list", action="store_true", help="Print the functions, too.")
    options = parser.parse_args()
    trace = trace_compress(ROOT / "samples" / "scene5.png")
    files = Counter(file for file, _ in trace.functions)
    if options.list:
        for file, name in sorted(trace.functions):
            print(f"{file}\t{name}")
    print(json.dumps({"functions": len(trace.functions), "files": len(files), "depth": trace.depth}))


if __name__ == "__main__":
    main()
