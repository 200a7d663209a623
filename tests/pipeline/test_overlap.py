"""On a GPU the tower gets the next batch before the selection of this one: in order, and with the same results."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prunesid_cli import load
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.pipeline.batches import BatchRunner
from prunesid_cli.pipeline.compress import Result, compress
from prunesid_cli.pipeline.load import InputLoader, input_decoder
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.results import FailedInput
from prunesid_cli.pipeline.token_budgets import allocate_on_arrival
from prunesid_cli.runtime.batch_size import BatchSizeTuner
from prunesid_cli.tokencache import Entry
from prunesid_cli.types import Encoded, Pixels


class Tower:
    """A vision half that notes when it begins a batch. Named calls fail for lack of memory, or give NaN for an item."""

    def __init__(self, vision: Any, events: list[str], out_of_memory: Sequence[int], bad_items: Sequence[int]) -> None:
        self.vision, self.events = vision, events
        self.out_of_memory, self.bad_items = out_of_memory, bad_items
        self.num_calls = self.num_items = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vision, name)

    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        self.num_calls += 1
        self.events.append(f"tower {len(items)}")
        if self.num_calls in self.out_of_memory:
            raise torch.OutOfMemoryError("out of memory")
        encoded = self.vision.encode(items)
        for row in range(len(items)):
            self.num_items += 1
            if self.num_items in self.bad_items:
                (segment,) = encoded[row].segments
                bad = replace(segment, features=torch.full_like(segment.features, torch.nan))
                encoded[row] = replace(encoded[row], segments=(bad,))
        return list(encoded)


def run(
    pruner: Pruner,
    files: Iterator[ListedFile],
    overlaps: bool,
    out_of_memory: Sequence[int] = (),
    bad_items: Sequence[int] = (),
) -> tuple[list[Result], list[str]]:
    """The results, and in which order batches of two were begun and finished."""
    events = list[str]()
    tower: Any = Tower(pruner.vision, events, out_of_memory, bad_items)
    watched = replace(pruner, vision=tower)
    loader = InputLoader(input_decoder(watched, None))
    runner = BatchRunner(watched, loader, BatchSizeTuner.fixed(2), num_loading=2, overlaps=overlaps)
    allocator = allocate_on_arrival(watched, ())

    def write(results: Sequence[Result]) -> None:
        events.append(f"done {len(results)}")
        time.sleep(0.2)  # the next batches are loaded meanwhile

    return list(compress(runner, files, allocator, write)), events


@pytest.fixture
def pruner(llava: Path) -> Pruner:
    return load(str(llava), device="cpu").pruner


def files(pictures: list[Path]) -> Iterator[ListedFile]:
    return (ListedFile(str(path)) for path in pictures)


def same(one: Result, other: Result) -> bool:
    if isinstance(one, Entry) and isinstance(other, Entry):
        return one.source == other.source and torch.equal(one.tokens.tokens, other.tokens.tokens)
    return isinstance(one, FailedInput) and isinstance(other, FailedInput) and one.source == other.source


def test_the_next_batch_is_begun_first(pruner: Pruner, pictures: list[Path]) -> None:
    plain, in_turn = run(pruner, files(pictures[:8]), overlaps=False)
    overlapped, events = run(pruner, files(pictures[:8]), overlaps=True)
    assert in_turn == ["tower 2", "done 2"] * 4
    assert sorted(events) == sorted(in_turn)
    assert "tower 2, tower 2, done 2, tower 2, done 2" in ", ".join(events)
    assert all(map(same, plain, overlapped)) and len(overlapped) == 8


def test_results_do_not_wait_for_inputs_that_do_not_come(pruner: Pruner, pictures: list[Path]) -> None:
    """Such as the next line of a list on stdin."""
    seen = list[str]()

    def slow() -> Iterator[ListedFile]:
        for number, path in enumerate(pictures[:4]):
            if number == 2:
                time.sleep(1.5)
                assert seen == [str(path) for path in pictures[:2]]
            yield ListedFile(str(path))

    loader = InputLoader(input_decoder(pruner, None))
    runner = BatchRunner(pruner, loader, BatchSizeTuner.fixed(2), num_loading=2, overlaps=True)
    pruner.load_vision()
    for result in compress(runner, slow(), allocate_on_arrival(pruner, ()), lambda results: None):
        seen.append(result.source)
    assert len(seen) == 4


@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_batch_without_memory_is_encoded_when_the_others_are_done(
    pruner: Pruner, pictures: list[Path], call: int
) -> None:
    plain, _ = run(pruner, files(pictures[:8]), overlaps=False)
    results, _ = run(pruner, files(pictures[:8]), overlaps=True, out_of_memory=[call])
    assert all(map(same, plain, results)) and len(results) == 8


def test_a_bad_item_of_a_begun_batch_costs_itself_alone(pruner: Pruner, pictures: list[Path]) -> None:
    results, _ = run(pruner, files(pictures[:6]), overlaps=True, bad_items=[3])
    plain, _ = run(pruner, files(pictures[:6]), overlaps=False)
    failed = [result.source for result in results if isinstance(result, FailedInput)]
    assert failed == [str(pictures[2])]
    assert sum(map(same, plain, results)) == 5
