"""Work that is done behind, so that whoever asks for it need not wait: writing while the next batch is encoded."""

from __future__ import annotations

from collections.abc import Callable
from queue import Queue
from threading import Thread
from types import TracebackType

DEPTH = 2
"""Calls that wait; more make the caller wait."""


class Behind:
    """Calls, one after the other, in a thread of its own. On leaving, waits until all are done.

    The first that raises is the last that is done. Its error is raised by the next call, or on leaving.
    """

    def __init__(self, depth: int = DEPTH) -> None:
        self._calls: Queue[Callable[[], object] | None] = Queue(depth)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._work, name="behind", daemon=True)

    def do(self, call: Callable[[], object]) -> None:
        self._check()
        self._calls.put(call)

    def _work(self) -> None:
        while call := self._calls.get():
            try:
                if self._error is None:
                    call()
            except BaseException as error:
                self._error = error

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Behind:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._calls.put(None)
        self._thread.join()
        if error is None:
            self._check()
