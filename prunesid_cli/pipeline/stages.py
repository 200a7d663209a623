"""The two stages of `compress` that need the vision tower, in this process or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.pipeline.batches import BatchRunner
from prunesid_cli.pipeline.compress import Result, compress
from prunesid_cli.pipeline.measure import MeasuredInput, measure
from prunesid_cli.pipeline.token_budgets import TokenAllocator
from prunesid_cli.tokencache import MeasurementLog


class Stages(Protocol):
    """Measures and compresses files. Results come in the order of the files."""

    def compress(
        self, files: Iterable[ListedFile], allocator: TokenAllocator, write: Callable[[Sequence[Result]], object]
    ) -> Generator[Result, None, None]:
        """See `pipeline.compress.compress`."""

    def measure(self, files: Iterable[ListedFile], log: MeasurementLog | None = None) -> Iterator[MeasuredInput]:
        """See `pipeline.measure.measure`."""


@dataclass(frozen=True)
class LocalStages:
    """In this process."""

    runner: BatchRunner

    def compress(
        self, files: Iterable[ListedFile], allocator: TokenAllocator, write: Callable[[Sequence[Result]], object]
    ) -> Generator[Result, None, None]:
        return compress(self.runner, files, allocator, write)

    def measure(self, files: Iterable[ListedFile], log: MeasurementLog | None = None) -> Iterator[MeasuredInput]:
        return measure(self.runner, files, log)
