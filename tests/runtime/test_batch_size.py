"""Batches grow while that increases the rate, and shrink where memory ends."""

from __future__ import annotations

from collections.abc import Callable

from prunesid_cli.runtime.batch_size import BatchSizeTuner


def run(tuner: BatchSizeTuner, seconds: Callable[[int], float], num_batches: int = 60) -> list[int]:
    """The sizes of successive batches that take `seconds(size)` each."""
    sizes = []
    for _ in range(num_batches):
        sizes.append(tuner.size)
        tuner.record(tuner.size, seconds(tuner.size))
    return sizes


def test_batches_grow_while_that_pays() -> None:
    def levels_off_at(limit: int) -> Callable[[int], float]:
        return lambda size: max(1.0, size / limit)

    assert run(BatchSizeTuner(8, 1024), levels_off_at(64))[-1] == 64
    assert run(BatchSizeTuner(8, 1024), lambda size: 1.0)[-1] == 1024
    assert run(BatchSizeTuner(8, 1024), lambda size: size * 1.0)[-1] == 8
    assert set(run(BatchSizeTuner.fixed(5), lambda size: 1.0)) == {5}
    assert run(BatchSizeTuner(8, 1024), levels_off_at(64), 500)[60:] == [64] * 440


def test_batches_that_do_not_fit_are_halved_for_good() -> None:
    tuner = BatchSizeTuner(8, 1024)
    run(tuner, lambda size: 1.0, 12)
    assert tuner.size == 32
    tuner.shrink(32)
    assert set(run(tuner, lambda size: 1.0)) == {16}
    fixed = BatchSizeTuner.fixed(1)
    fixed.shrink(1)
    assert fixed.size == 1


def test_a_single_large_item_is_measured_at_its_own_size() -> None:
    tuner = BatchSizeTuner(8, 1024)
    for _ in range(40):
        tuner.record(32, 1.0)
    assert tuner.size == 64, "two such items at once come next"
    for _ in range(8):
        tuner.record(64, 2.0)
    assert tuner.size == 32
