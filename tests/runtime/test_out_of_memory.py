"""Batches that do not fit into memory are halved; an item that never fits fails alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom


@pytest.mark.parametrize("room", [1, 2, 3, 7])
def test_a_batch_that_does_not_fit_is_halved(room: int) -> None:
    sizes = list[int]()

    def work(batch: Sequence[int]) -> list[int]:
        if len(batch) > room:
            raise torch.OutOfMemoryError
        sizes.append(len(batch))
        return [10 * number for number in batch]

    assert run_in_halves_on_oom(work, range(7), lambda number: -1) == [10 * number for number in range(7)]
    assert max(sizes) <= room


def test_an_item_that_never_fits_fails_alone() -> None:
    def work(batch: Sequence[int]) -> list[int]:
        if 3 in batch:
            raise torch.OutOfMemoryError
        return list(batch)

    assert run_in_halves_on_oom(work, range(6), lambda number: -number) == [0, 1, 2, -3, 4, 5]


def test_a_split_is_reported_once() -> None:
    splits = list[int]()

    def work(batch: Sequence[int]) -> list[int]:
        if len(batch) > 1:
            raise RuntimeError("MPS backend out of memory")
        return list(batch)

    assert run_in_halves_on_oom(work, range(8), lambda number: -1, lambda: splits.append(1)) == list(range(8))
    assert splits == [1]


def test_other_errors_are_raised() -> None:
    def fail(batch: Sequence[int]) -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        run_in_halves_on_oom(fail, range(8), lambda number: -1)
