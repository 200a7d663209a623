"""A sample of a stream: all of a short one, and each item of a long one as likely as any other."""

from __future__ import annotations

from collections import Counter

from prunesid_cli.runtime.reservoir import Reservoir


def sample(count: int, size: int) -> list[int]:
    reservoir = Reservoir[int](size)
    for number in range(count):
        reservoir.add(number)
    assert reservoir.count == count
    return reservoir.items


def test_a_sample_is_even() -> None:
    assert sample(3, 5) == [0, 1, 2]
    assert sample(1000, 5) == sample(1000, 5)
    tenths = Counter(number // 1000 for number in sample(10_000, 2000))
    assert all(150 < tenths[tenth] < 250 for tenth in range(10))
