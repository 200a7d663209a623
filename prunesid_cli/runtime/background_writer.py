"""A background thread that writes results while the next batch is encoded."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, Queue
from threading import Thread
from types import TracebackType

MAX_WAITING_CALLS = 2
IDLE_SECONDS = 1.0


class BackgroundWriter:
    """Runs calls one after the other in one thread. Leaving the `with` block waits until all of them are done.

    After a call has raised an error, later calls are not run. The next `submit` raises that error, or the end of the
    `with` block does.

    Args:
        on_idle: Called in the thread whenever no call came for `idle_seconds`.
        idle_seconds: See `on_idle`.
    """

    def __init__(self, on_idle: Callable[[], object] = lambda: None, idle_seconds: float = IDLE_SECONDS) -> None:
        self._on_idle, self._idle_seconds = on_idle, idle_seconds
        self._calls: Queue[Callable[[], object] | None] = Queue(MAX_WAITING_CALLS)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="background-writer", daemon=True)

    def submit(self, call: Callable[[], object]) -> None:
        """Run a call in the background; wait while `MAX_WAITING_CALLS` are waiting."""
        if self._error is not None:
            raise self._error
        self._calls.put(call)

    def _run(self) -> None:
        while True:
            try:
                call = self._calls.get(timeout=self._idle_seconds)
            except Empty:
                call = self._on_idle
            if call is None:
                return
            try:
                if self._error is None:
                    call()
            except BaseException as error:
                self._error = error

    def __enter__(self) -> BackgroundWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error
