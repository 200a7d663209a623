"""Graceful shutdown: the first signal stops a run after the current batch, the second one ends the process at once."""

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
FIRST_SIGNAL_MESSAGE = "\nfinishing the current batch; press again to exit at once\n"
SECOND_SIGNAL_MESSAGE = "\x1b[?25h\nexited at once; the items saved so far are intact\n"
"""Starts by showing the cursor, which a progress bar has hidden."""


@dataclass
class StopRequest:
    """A request to end a run, polled by whatever waits for long.

    Attributes:
        requested: Whether the run should end.
    """

    requested: bool = False

    def raise_if_requested(self) -> None:
        """Raise KeyboardInterrupt if a stop was requested."""
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def graceful_shutdown() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a stop request within the `with` block.

    A second signal ends the process, as kill -9 would. Signals that are ignored, such as SIGINT in a background job,
    stay ignored. Outside the main thread, signals are left alone.
    """
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.requested:
            _write_to_terminal(SECOND_SIGNAL_MESSAGE)
            os._exit(ExitCode.INTERRUPTED)
        stop.requested = True
        _write_to_terminal(FIRST_SIGNAL_MESSAGE)

    is_main = threading.current_thread() is threading.main_thread()
    handled = [number for number in SIGNALS if is_main and signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handle) for number in handled}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _write_to_terminal(text: str) -> None:
    """Write to stderr if it is a terminal, past its buffer: the interrupted code may be writing to that."""
    with suppress(OSError, ValueError):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), text.encode())
