"""Work that is done behind, so that whoever asks for it need not wait: writing while the next batch is encoded."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, Queue
from threading import Thread
from types import TracebackType

DEPTH = 2
"""Calls that wait; more make the caller wait."""
IDLE = 1.0
"""Seconds."""


class BackgroundWriter:
    """Calls, one after the other, in a thread of its own. On leaving, waits until all are done.

    `idle` is called whenever nothing came for a while. The first call that raises is the last that is done; its error
    is raised by the next one that is asked for, or on leaving.
    """

    def __init__(self, idle: Callable[[], object] = lambda: None, after: float = IDLE) -> None:
        self._idle, self._after = idle, after
        self._calls: Queue[Callable[[], object] | None] = Queue(DEPTH)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, name="behind", daemon=True)

    def submit(self, call: Callable[[], object]) -> None:
        self._check()
        self._calls.put(call)

    def _work(self) -> None:
        while call := self._next():
            try:
                if self._error is None:
                    call()
            except BaseException as error:
                self._error = error

    def _next(self) -> Callable[[], object] | None:
        try:
            return self._calls.get(timeout=self._after)
        except Empty:
            return self._idle

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> BackgroundWriter:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.put(None)
        self._thread.join()
        if error is None:
            self._check()
