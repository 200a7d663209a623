"""Memory that serves one image after the other."""

from __future__ import annotations

import pytest
import torch

from prunesid_cli.selection.linalg.per_image import ROOM, each_image, room

CPU = torch.device("cpu")


def test_the_next_image_gets_the_same_memory() -> None:
    like, threads = torch.empty(0), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        places = each_image(lambda row: [room(like, 5, 7).data_ptr(), room(like, 3).data_ptr()], 3, CPU)
    finally:
        torch.set_num_threads(threads)
    assert places[0] == places[1] == places[2]
    assert places[0][1] - places[0][0] >= 4 * 5 * 7
    assert places[0][1] % 64 == 0


def test_outside_of_an_image_nothing_is_shared() -> None:
    each_image(lambda row: room(torch.empty(0), 8).fill_(row), 2, CPU)
    one, other = room(torch.empty(0), 8).fill_(1), room(torch.empty(0), 8).fill_(2)
    assert one.tolist() == [1] * 8
    assert other.tolist() == [2] * 8


def test_what_does_not_fit_is_still_there() -> None:
    def work(row: int) -> tuple[int, bool]:
        large = room(torch.empty(0), ROOM // 4 + 1)
        small = room(torch.empty(0), 2, 2, dtype=torch.float64)
        return large.numel(), small.dtype == torch.float64 and small.shape == (2, 2)

    assert each_image(work, 2, CPU) == [(ROOM // 4 + 1, True)] * 2


def test_after_a_failure_too() -> None:
    def fail(row: int) -> None:
        room(torch.empty(0), 8)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        each_image(fail, 1, CPU)
    test_outside_of_an_image_nothing_is_shared()
