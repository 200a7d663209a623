"""Prefetching: results come in order, in bounded batches, and errors come in their turn."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesid_cli.runtime.prefetch import Prefetcher
from prunesid_cli.runtime.shutdown import StopRequest

MAX_ITEMS = 7


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 12), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_batches_are_filled_in_order(sizes: list[int], max_size: int, max_ahead: int) -> None:
    """By the size of each item; a batch holds one item at least."""
    num_started, num_taken = [0], [0]

    def work(number: int) -> tuple[int, int]:
        num_started[0] += 1
        limit = max_ahead + MAX_ITEMS + 1
        assert num_started[0] - num_taken[0] <= limit, "items ahead, a batch and the item that overfills it"
        return number, sizes[number]

    prefetcher = Prefetcher(
        range(len(sizes)), work, num_bytes=lambda result: 1, max_ahead=lambda: max_ahead, stop=StopRequest()
    )
    with prefetcher:
        batches = []
        for batch in prefetcher.batches(
            size_of=lambda result: result[1], max_size=lambda: max_size, max_items=MAX_ITEMS
        ):
            batches.append(batch)
            num_taken[0] += len(batch)
            assert len(batch) == 1 or sum(size for _, size in batch) <= max_size
    assert [number for batch in batches for number, _ in batch] == list(range(len(sizes)))
    for batch, following in pairwise(batches):
        room = max_size - sum(size for _, size in batch)
        assert following[0][1] > room or len(batch) == MAX_ITEMS, "a batch was given though the next item fitted in"


def test_waiting_results_are_bounded_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prunesid_cli.runtime.prefetch.MAX_WAITING_BYTES", 10)
    started = list[int]()

    def work(number: int) -> int:
        started.append(number)
        return number

    with Prefetcher(
        range(50), work, num_bytes=lambda result: 4, max_ahead=lambda: 40, stop=StopRequest(), num_threads=3
    ) as prefetcher:
        prefetcher.next_result()
        time.sleep(0.3)
        assert len(started) <= 1 + 10 // 4 + 1 + 3
        assert [prefetcher.next_result() for _ in range(49)] == list(range(1, 50))


def test_an_error_comes_in_its_turn() -> None:
    def work(number: int) -> int:
        return 6 // (number - 3)

    with Prefetcher(range(9), work, num_bytes=lambda result: 1, max_ahead=lambda: 9, stop=StopRequest()) as prefetcher:
        assert [prefetcher.next_result() for _ in range(3)] == [-2, -3, -6]
        with pytest.raises(ZeroDivisionError):
            prefetcher.next_result()


def test_nothing_is_given_after_a_stop_request() -> None:
    stop = StopRequest()
    prefetcher = Prefetcher(
        range(50), lambda number: number, num_bytes=lambda result: 1, max_ahead=lambda: 9, stop=stop
    )
    with prefetcher:
        batches = prefetcher.batches(size_of=lambda result: 1, max_size=lambda: 3, max_items=9)
        assert next(batches) == [0, 1, 2]
        stop.requested = True
        assert list(batches) == []
