"""Work that is done ahead, in threads: decoding while another batch is encoded. In order, and within bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from threading import Condition, Lock, Thread
from types import TracebackType
from typing import Generic, TypeVar

from prunesid_cli.runtime.shutdown import StopRequest

T = TypeVar("T")
R = TypeVar("R")

THREADS = 2
BYTES = 1 << 30
"""Results that wait; with more nothing is begun, so that at most one a thread comes on top."""
MOMENT = 0.2
"""Seconds after which whoever waits looks around."""
PARTING = 10.0
"""Seconds that work which nobody wants any more is waited for."""


@dataclass(frozen=True)
class Fault:
    """What ended the work on an item, and ends the run when its turn comes."""

    error: BaseException


class Prefetcher(Generic[T, R]):
    """`work` on each item, in order; to be entered before it is taken from.

    weigh: bytes of a result. depth: items that may be begun before they are taken; may change.
    """

    def __init__(
        self,
        items: Iterable[T],
        work: Callable[[T], R],
        weigh: Callable[[R], int],
        depth: Callable[[], int],
        stop: StopRequest,
    ) -> None:
        self._items, self._work, self._weigh, self._depth, self._stop = iter(items), work, weigh, depth, stop
        self._listing, self._change = Lock(), Condition()
        self._done = dict[int, R | Fault]()
        self._begun = self._taken = self._bytes = 0
        self._is_ended = self._is_closed = False

    def take(self) -> R | None:
        """The next result. None: there is none for now, as nothing is worked on, or the run was asked to stop.

        Raises:
            StopIteration: that was the last one.
        """
        with self._change:
            while self._taken not in self._done:
                if self._is_ended and self._taken == self._begun:
                    raise StopIteration
                is_news = self._change.wait(MOMENT)
                if self._stop.asked or not is_news and self._taken == self._begun and not self._is_ended:
                    return None
            done = self._done.pop(self._taken)
            self._taken += 1
            self._bytes -= 0 if isinstance(done, Fault) else self._weigh(done)
            self._change.notify_all()
        if isinstance(done, Fault):
            raise done.error
        return done

    def _serve(self) -> None:
        while (started := self._begin()) is not None:
            number, item = started
            done: R | Fault
            try:
                done = self._work(item)
            except BaseException as error:
                done = Fault(error)
            self._put(number, done)

    def _begin(self) -> tuple[int, T] | None:
        """The next item and its number, once there is room for it. One thread waits for both, the others for it."""
        with self._listing:
            with self._change:
                self._change.wait_for(lambda: self._has_room or self._is_closed)
                if self._is_closed or self._is_ended:
                    return None
            try:
                item = next(self._items)
            except BaseException as error:
                with self._change:
                    self._is_ended = True
                    if not isinstance(error, StopIteration):
                        self._done[self._begun] = Fault(error)
                        self._begun += 1
                    self._change.notify_all()
                return None
            with self._change:
                if self._is_closed:
                    return None
                self._begun += 1
                return self._begun - 1, item

    @property
    def _has_room(self) -> bool:
        return self._begun - self._taken < self._depth() and self._bytes < BYTES

    def _put(self, number: int, done: R | Fault) -> None:
        with self._change:
            self._done[number] = done
            self._bytes += 0 if isinstance(done, Fault) else self._weigh(done)
            self._change.notify_all()

    def __enter__(self) -> Prefetcher[T, R]:
        for _ in range(THREADS):
            Thread(target=self._serve, name="ahead", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is being worked on is waited for, not for long; what is being waited for, as a list on stdin, not."""
        with self._change:
            self._is_closed = True
            self._change.notify_all()
            self._change.wait_for(lambda: self._begun - self._taken == len(self._done), PARTING)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """In lists of `size`, the last one shorter."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def batches_of(
    ahead: Prefetcher[T, R], size: Callable[[], int], count: Callable[[R], int], most: int, stop: StopRequest
) -> Iterator[list[R]]:
    """Results in batches of at most `size` by their `count`, and of one at least; of `most` results. What came is not
    kept waiting for what does not come; after a stop was asked for, none is given."""
    batch, filled = list[R](), 0
    while not stop.asked:
        try:
            one = ahead.take()
        except StopIteration:
            break
        is_over = one is None or filled + count(one) > size() or len(batch) >= most
        if batch and is_over and not stop.asked:
            yield batch
            batch, filled = [], 0
        if one is not None:
            batch.append(one)
            filled += count(one)
    if batch and not stop.asked:
        yield batch
