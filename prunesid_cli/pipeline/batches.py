"""Runs over many inputs: loads them ahead in order, and adapts the size of batches to speed and memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.pipeline.load import InputLoader, LoadedInput, input_decoder
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.workers import count_loading
from prunesid_cli.runtime.batch_size import BatchSizeTuner
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom
from prunesid_cli.runtime.prefetch import Prefetcher
from prunesid_cli.runtime.shutdown import StopRequest
from prunesid_cli.runtime.worker_pool import WorkerPool
from prunesid_cli.tokencache import CacheWriter

PREFETCHED_BATCHES, PREFETCHED_ITEMS = 2, 8
"""How many batches are loaded ahead, and how many items more: some may be cached already, or damaged."""
MAX_BATCH_ITEMS = 256
"""Items of a batch, including those that are cached already or failed."""


class Weighed(Protocol):
    """A loaded item: how many images the vision tower encodes of it, and its bytes in memory."""

    @property
    def num_images(self) -> int: ...

    @property
    def nbytes(self) -> int: ...


R = TypeVar("R")
L = TypeVar("L", bound=Weighed)
B = TypeVar("B")


@dataclass(frozen=True)
class BatchRunner:
    """What a run over many inputs works with.

    Attributes:
        pruner: Encodes the inputs and selects their tokens.
        loader: Loads the inputs.
        batch_size: Chooses how many images a batch has.
        num_loading: How many inputs are loaded at the same time.
        overlaps: Whether the next batch is begun before this one is finished.
        stop: Whether the user asked to stop.
    """

    pruner: Pruner
    loader: InputLoader
    batch_size: BatchSizeTuner
    num_loading: int = 1
    overlaps: bool = False
    stop: StopRequest = field(default_factory=StopRequest)

    def load_batches(
        self,
        files: Iterable[ListedFile],
        load: Callable[[int, ListedFile], L],
        begin: Callable[[Sequence[L]], B] = lambda batch: None,  # type: ignore[assignment, return-value]
    ) -> Iterator[tuple[Sequence[L], B]]:
        """Loads files ahead, in the order of the listing.

        Args:
            files: The files.
            load: Loads a file, given its position and itself. Called from several threads.
            begin: Called with each batch. If batches overlap and the next one is loaded, it is called with that before
                this one is yielded.

        Yields:
            The batches, each with the result of `begin`.
        """
        prefetcher = Prefetcher(
            enumerate(files),
            lambda numbered: load(*numbered),
            num_bytes=lambda item: item.nbytes,
            max_ahead=lambda: PREFETCHED_BATCHES * (self.batch_size.size + self.num_loading) + PREFETCHED_ITEMS,
            stop=self.stop,
            num_threads=self.num_loading,
        )
        begun: tuple[Sequence[L], B] | None = None
        with prefetcher as loaded:
            for batch in loaded.batches(
                size_of=lambda item: item.num_images, max_size=lambda: self.batch_size.size, max_items=MAX_BATCH_ITEMS
            ):
                previous, begun = begun, (batch, begin(batch))
                if previous:
                    yield previous
                if not (self.overlaps and prefetcher.is_ready(self.batch_size.size)):
                    yield begun
                    begun = None
            if begun:
                yield begun

    def run(
        self,
        work: Callable[[Sequence[LoadedInput]], list[R]],
        batch: Sequence[LoadedInput],
        on_too_large: Callable[[LoadedInput], R],
        start: float | None = None,
    ) -> list[R]:
        """Runs `work` on a batch, in halves where it does not fit into memory; learns from time and memory.

        Args:
            work: Maps a batch to one result an item.
            batch: The items.
            on_too_large: Gives the result of an item that does not fit even alone.
            start: When work on the batch was begun, by `time.perf_counter`; None: now.
        """
        if not batch:
            return []
        self.pruner.load_vision()

        def timed_work(part: Sequence[LoadedInput]) -> list[R]:
            begun = start if start is not None and part is batch else time.perf_counter()
            results = work(part)
            self.batch_size.record_span(sum(item.num_images for item in part), begun, time.perf_counter())
            return results

        num_images = sum(item.num_images for item in batch)
        return run_in_halves_on_oom(timed_work, batch, on_too_large, lambda: self.batch_size.shrink(num_images))


def make_runner(
    session: Session,
    pruner: Pruner,
    pool: WorkerPool | None,
    writer: CacheWriter | None = None,
    by_content: bool = False,
    stop: StopRequest | None = None,
) -> BatchRunner:
    """A runner for the device of a session; see `BatchRunner` and `InputLoader` for the arguments.

    Args:
        session: The model.
        pruner: See `BatchRunner`.
        pool: Decodes the inputs; None: they are decoded in this process.
        writer: See `InputLoader`.
        by_content: See `InputLoader`.
        stop: See `BatchRunner`.
    """
    device_type = session.placement.device.type
    return BatchRunner(
        pruner=pruner,
        loader=InputLoader(input_decoder(pruner, pool), writer, by_content),
        batch_size=session.tower_batch_size(),
        num_loading=count_loading(pool, session.settings, device_type),
        overlaps=device_type == "cuda",
        stop=stop or StopRequest(),
    )
