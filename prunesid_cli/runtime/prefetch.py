"""Prefetching: worker threads decode the next items while the current batch is encoded.

Results come in the order of the items. The number of items ahead and the bytes of waiting results are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from threading import Condition, Lock, Thread
from types import TracebackType
from typing import Generic, TypeVar

from prunesid_cli.runtime.shutdown import StopRequest

T = TypeVar("T")
R = TypeVar("R")

MAX_WAITING_BYTES = 1 << 30
"""Bytes of finished results above which no further item is started. At most one result per thread comes on top."""
POLL_SECONDS = 0.2
EXIT_SECONDS = 10.0
"""How long leaving the `with` block waits for items in progress, whose results are no longer needed."""


@dataclass(frozen=True)
class Failure:
    """An error raised by `work` or by the iterator of the items; it is raised again when its turn comes."""

    error: BaseException


class Prefetcher(Generic[T, R]):
    """Runs `work` on each item in threads and gives the results in order. Use as a context manager.

    Args:
        items: Read lazily, by one thread at a time.
        work: Called in a worker thread, with one item. Must not return None.
        num_bytes: Size of a result in bytes, for the memory bound.
        max_ahead: Number of items that may be started before their results are taken. Called anew for each item.
        stop: Once a stop is requested, no more results are given.
        num_threads: Number of items that are worked on at the same time.
    """

    def __init__(
        self,
        items: Iterable[T],
        work: Callable[[T], R],
        *,
        num_bytes: Callable[[R], int],
        max_ahead: Callable[[], int],
        stop: StopRequest,
        num_threads: int = 2,
    ) -> None:
        self._items, self._work, self._num_bytes, self._max_ahead = iter(items), work, num_bytes, max_ahead
        self._stop, self._num_threads = stop, num_threads
        self._items_lock, self._changed = Lock(), Condition()
        self._results = dict[int, R | Failure]()
        self._num_started = self._num_taken = self._waiting_bytes = 0
        self._is_exhausted = self._is_closed = False

    def next_result(self) -> R | None:
        """Wait for the next result.

        Returns:
            The result; None if no item is being worked on at the moment, or if a stop was requested.

        Raises:
            StopIteration: There are no more results.
        """
        with self._changed:
            while self._num_taken not in self._results:
                if self._is_exhausted and self._num_taken == self._num_started:
                    raise StopIteration
                is_notified = self._changed.wait(POLL_SECONDS)
                is_idle = not is_notified and self._num_taken == self._num_started and not self._is_exhausted
                if self._stop.requested or is_idle:
                    return None
            result = self._results.pop(self._num_taken)
            self._num_taken += 1
            self._waiting_bytes -= 0 if isinstance(result, Failure) else self._num_bytes(result)
            self._changed.notify_all()
        if isinstance(result, Failure):
            raise result.error
        return result

    def is_ready(self, count: int) -> bool:
        """Whether the next `count` results are there, or all that are left. It does not wait."""
        with self._changed:
            last = self._num_taken + count
            if self._is_exhausted:
                last = min(last, self._num_started)
            return all(number in self._results for number in range(self._num_taken, last))

    def batches(self, *, size_of: Callable[[R], int], max_size: Callable[[], int], max_items: int) -> Iterator[list[R]]:
        """Group the results into batches, in order. Nothing is given once a stop was requested.

        A batch is given early if no item is being worked on: results do not wait for items that may never come.

        Args:
            size_of: What one result counts towards the size of a batch.
            max_size: Largest total size of the next batch. A single result may exceed it.
            max_items: Largest number of results in a batch.
        """
        batch, size = list[R](), 0
        while not self._stop.requested:
            try:
                result = self.next_result()
            except StopIteration:
                break
            is_complete = result is None or size + size_of(result) > max_size() or len(batch) >= max_items
            if batch and is_complete and not self._stop.requested:
                yield batch
                batch, size = [], 0
            if result is not None:
                batch.append(result)
                size += size_of(result)
        if batch and not self._stop.requested:
            yield batch

    def _run_worker(self) -> None:
        while True:
            with self._items_lock:  # the thread that holds it waits for room and for the next item, the others for it
                with self._changed:
                    while not self._is_closed and (
                        self._num_started - self._num_taken >= self._max_ahead()
                        or self._waiting_bytes >= MAX_WAITING_BYTES
                    ):
                        self._changed.wait()
                    if self._is_closed or self._is_exhausted:
                        return
                try:
                    item = next(self._items)
                except BaseException as error:
                    with self._changed:
                        self._is_exhausted = True
                        if not isinstance(error, StopIteration):
                            self._results[self._num_started] = Failure(error)
                            self._num_started += 1
                        self._changed.notify_all()
                    return
                with self._changed:
                    if self._is_closed:
                        return
                    number = self._num_started
                    self._num_started += 1
            result: R | Failure
            try:
                result = self._work(item)
            except BaseException as error:
                result = Failure(error)
            with self._changed:
                self._results[number] = result
                self._waiting_bytes += 0 if isinstance(result, Failure) else self._num_bytes(result)
                if number == self._num_taken or self._is_closed:  # only the next result is waited for
                    self._changed.notify_all()

    def __enter__(self) -> Prefetcher[T, R]:
        for _ in range(self._num_threads):
            Thread(target=self._run_worker, name="prefetch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait up to `EXIT_SECONDS` for items in progress, but not for the next item, such as a line on stdin."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._num_started - self._num_taken == len(self._results), EXIT_SECONDS)
