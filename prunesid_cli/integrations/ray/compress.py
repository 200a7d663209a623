"""`compress --ray`: the driver lists the inputs and writes the cache, and actors encode what lies between."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.integrations.ray.actor import BlockItem
from prunesid_cli.integrations.ray.cluster import ActorPool
from prunesid_cli.pipeline.copies import CopyFinder
from prunesid_cli.pipeline.load import DecodeRequest, InputLoader
from prunesid_cli.pipeline.measure import MeasuredInput, recall
from prunesid_cli.pipeline.results import CachedInput, FailedInput
from prunesid_cli.pipeline.token_budgets import PlannedAllocator, TokenAllocator
from prunesid_cli.runtime.prefetch import Prefetcher
from prunesid_cli.tokencache import Measurement, MeasurementLog

if TYPE_CHECKING:
    from prunesid_cli.pipeline.compress import Result

BLOCK_INPUTS, BLOCK_FILES = 64, 1024
"""A block ends after so many inputs for an actor, or so many files, those in the cache included."""


@dataclass(frozen=True)
class Block:
    """Successive files of the listing.

    Attributes:
        known: For each file its result if the driver knows it, else None.
        items: The other files, in their order.
        numbers: Their positions in the listing.
    """

    known: list[Any] = field(default_factory=list)
    items: list[BlockItem] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class RayRunner:
    """Runs over many inputs by the actors of a cluster. Results come in the order of the listing.

    Attributes:
        pool: The actors.
        loader: Tells which inputs the cache holds.
    """

    pool: ActorPool[Block]
    loader: InputLoader

    @property
    def look_up(self) -> InputLoader:
        """A loader that returns the requests for actors, and decodes nothing."""
        return replace(self.loader, decode=lambda request: request)  # type: ignore[arg-type, return-value]

    def compress(
        self,
        files: Iterable[ListedFile],
        allocator: TokenAllocator,
        write: Callable[[Sequence[Result]], object],
    ) -> Generator[Result, None, None]:
        """As `pipeline.compress.compress`."""
        plan, find = allocator.plan if isinstance(allocator, PlannedAllocator) else None, self.look_up

        def look_up(number: int, file: ListedFile) -> Any:
            refused = allocator.refused.get(number)
            return FailedInput(file.source, refused) if refused and not file.error else find(number, file)

        def call(actor: Any, block: Block) -> Any:
            counts = None if plan is None else [plan[number] for number in block.numbers]
            return actor.compress.remote(block.items, counts) if block.items else None

        copies = CopyFinder(self.loader.writer)  # an actor knows only those within a block
        for encoded, _ in self._run(files, look_up, call, FailedInput):
            results = copies.replace_copies(encoded)
            write(results)
            yield from results

    def measure(self, files: Iterable[ListedFile], log: MeasurementLog | None = None) -> Iterator[MeasuredInput]:
        """As `pipeline.measure.measure`."""
        find = self.look_up

        def look_up(number: int, file: ListedFile) -> Any:
            found = recall(self.loader, log, file) or find(number, file)
            if isinstance(found, FailedInput):
                return MeasuredInput(found.source, error=found.error)
            if isinstance(found, CachedInput):
                return MeasuredInput(found.source, found.entry.phi, found.entry.total, found.entry.kept)
            return found

        def call(actor: Any, block: Block) -> Any:
            return actor.measure.remote(block.items) if block.items else None

        def fail(source: str, error: MediaError) -> MeasuredInput:
            return MeasuredInput(source, error=error)

        for results, items in self._run(files, look_up, call, fail):
            stamps = {item.request.source: item.request.stamp for item in items}
            if log is not None and items:
                log.add(
                    Measurement(item.source, stamp, item.phi, item.total)
                    for item in results
                    if (stamp := stamps.get(item.source)) and item.error is None and item.kept is None
                )
            yield from results

    def _run(self, files: Any, look_up: Any, call: Any, fail: Any) -> Iterator[tuple[list[Any], list[BlockItem]]]:
        """Run over files block by block.

        Args:
            files: The files.
            look_up: Position and file -> its result, or a `DecodeRequest` for an actor.
            call: See `ActorPool.run_in_order`.
            fail: Source and error -> the result of an input that was lost with its actor.

        Yields:
            The results of a block, and what of it went to an actor.
        """

        def split(block: Block) -> list[Block]:
            return [Block([None], [item], [number]) for item, number in zip(block.items, block.numbers, strict=True)]

        def on_lost(block: Block, reason: str) -> Any:
            source = block.items[0].request.source
            problem = f"{source}: each process that worked on it was lost ({reason})"
            return fail(source, MediaError(problem, "the same command tries it again"))

        prefetcher = Prefetcher(
            enumerate(files),
            lambda numbered: (*numbered, look_up(*numbered)),
            num_bytes=lambda found: 0,
            max_ahead=lambda: 2 * BLOCK_FILES,
            stop=self.pool.stop,
        )
        with prefetcher:
            take_block = partial(self._take_block, prefetcher)
            for block, encoded in self.pool.run_in_order(take_block, call, split, on_lost):
                by_actor = iter(encoded)
                yield [next(by_actor) if known is None else known for known in block.known], block.items

    def _take_block(self, prefetcher: Prefetcher[Any, Any]) -> Block | None:
        """The next block. It is smaller if no file comes for a while, such as the next line on stdin."""
        block, writer = Block(), self.loader.writer
        while len(block.items) < BLOCK_INPUTS and len(block.known) < BLOCK_FILES:
            try:
                taken = prefetcher.next_result()
            except StopIteration:
                if not block.known:
                    raise
                break
            if taken is None:
                break
            number, file, found = taken
            if isinstance(found, DecodeRequest):
                entry = writer.index.find(file.source) if writer and found.known_digest else None
                block.items.append(BlockItem(found, entry))
                block.numbers.append(number)
                found = None
            block.known.append(found)
        return block if block.known else None
