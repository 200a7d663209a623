"""Scratch memory is reused from one image to the next, and never shared otherwise."""

from __future__ import annotations

import pytest
import torch

from prunesid_cli.selection.linalg.per_image import SCRATCH_BYTES, map_images, scratch_tensor

CPU = torch.device("cpu")


def test_the_next_image_gets_the_same_memory() -> None:
    like, threads = torch.empty(0), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        pointers = map_images(lambda row: [scratch_tensor(like, *shape).data_ptr() for shape in ((5, 7), (3,))], 3, CPU)
    finally:
        torch.set_num_threads(threads)
    assert pointers[0] == pointers[1] == pointers[2]
    assert pointers[0][1] - pointers[0][0] >= 4 * 5 * 7
    assert pointers[0][1] % 64 == 0


def test_nothing_is_shared_outside_of_an_image() -> None:
    map_images(lambda row: scratch_tensor(torch.empty(0), 8).fill_(row), 2, CPU)
    first, second = scratch_tensor(torch.empty(0), 8).fill_(1), scratch_tensor(torch.empty(0), 8).fill_(2)
    assert first.tolist() == [1] * 8
    assert second.tolist() == [2] * 8


def test_a_tensor_that_does_not_fit_is_allocated() -> None:
    def work(row: int) -> tuple[int, bool]:
        large = scratch_tensor(torch.empty(0), SCRATCH_BYTES // 4 + 1)
        small = scratch_tensor(torch.empty(0), 2, 2, dtype=torch.float64)
        return large.numel(), small.dtype == torch.float64 and small.shape == (2, 2)

    assert map_images(work, 2, CPU) == [(SCRATCH_BYTES // 4 + 1, True)] * 2


def test_nothing_is_shared_after_a_failure() -> None:
    def fail(row: int) -> None:
        scratch_tensor(torch.empty(0), 8)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        map_images(fail, 1, CPU)
    test_nothing_is_shared_outside_of_an_image()
