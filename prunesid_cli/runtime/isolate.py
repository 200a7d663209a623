"""Separates the bad items of a batch from the good ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from prunesid_cli.errors import NonFiniteError

T = TypeVar("T")
R = TypeVar("R")


def run_without_bad_items(
    work: Callable[[Sequence[T]], list[R]], batch: Sequence[T], on_bad_item: Callable[[T], R]
) -> list[R]:
    """Run `work` on a batch. Items with NaN or infinity are taken out, and the others run again without them.

    Args:
        work: Maps a batch to one result an item. Raises `NonFiniteError` with the rows of the bad items.
        batch: The items.
        on_bad_item: Gives the result of a bad item.

    Returns:
        One result an item, in order.
    """
    if not batch:
        return []
    try:
        return work(batch)
    except NonFiniteError as error:
        bad_rows = set(error.rows)
    good_items = [item for row, item in enumerate(batch) if row not in bad_rows]
    good_results = iter(run_without_bad_items(work, good_items, on_bad_item))
    return [on_bad_item(item) if row in bad_rows else next(good_results) for row, item in enumerate(batch)]
