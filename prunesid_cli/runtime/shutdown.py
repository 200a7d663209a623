"""Ending a long run that somebody interrupts: between two batches at the first signal, at once at the second."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from prunesid_cli.errors import ExitCode

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FIRST = "\nfinishing the batch in flight; press again to leave at once\n"
SECOND = "\x1b[?25h\nleft at once; what was saved is whole\n"
"""A bar had hidden the cursor."""


@dataclass
class StopRequest:
    """Whether a run was asked to end. Whoever waits for something looks at it now and then."""

    requested: bool = False

    def raise_if_requested(self) -> None:
        """Raises KeyboardInterrupt: it was."""
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def graceful_shutdown() -> Iterator[StopRequest]:
    """In here SIGINT and SIGTERM only ask to stop; a second one ends the process, as kill -9 would. Signals that are
    ignored, as of a job in the background, stay so."""
    stop = StopRequest()

    def hear(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            _tell(SECOND)
            os._exit(ExitCode.INTERRUPTED)
        stop.requested = True
        _tell(FIRST)

    is_main = threading.current_thread() is threading.main_thread()
    heard = [one for one in SIGNALS if is_main and signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, hear) for one in heard}
    try:
        yield stop
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _tell(text: str) -> None:
    """To a person at a terminal, past the stream's buffer: whatever was interrupted may be writing to that."""
    with suppress(OSError, ValueError):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), text.encode())
