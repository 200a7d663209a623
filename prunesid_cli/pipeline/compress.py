"""The main flow of `compress`: files -> pixels -> visual tokens -> kept tokens -> cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from prunesid_cli.errors import MediaError, non_finite_error
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.pipeline.batches import BatchRunner
from prunesid_cli.pipeline.copies import CopyFinder
from prunesid_cli.pipeline.load import LoadedInput, LoadResult
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.results import CachedInput, CopiedInput, FailedInput
from prunesid_cli.pipeline.segments import item_information, to_host
from prunesid_cli.pipeline.session import Session, make_run
from prunesid_cli.pipeline.settings import TokenStore
from prunesid_cli.pipeline.token_budgets import TokenAllocator
from prunesid_cli.runtime.device import record_event, run_beside
from prunesid_cli.runtime.isolate import run_without_bad_items
from prunesid_cli.runtime.out_of_memory import is_out_of_memory
from prunesid_cli.tokencache import CacheWriter, Entry, ShardLimits
from prunesid_cli.tokencache.format import MAX_SHARD_ITEMS
from prunesid_cli.types import Encoded

Result = Entry | CachedInput | CopiedInput | FailedInput
"""What became of an input: tokens for the cache, a hit in the cache, a copy of another input, or an error."""


def compress(
    runner: BatchRunner,
    files: Iterable[ListedFile],
    allocator: TokenAllocator,
    write: Callable[[Sequence[Result]], object],
) -> Generator[Result, None, None]:
    """Encodes and prunes files, batch by batch.

    Args:
        runner: Loads the files and sizes the batches.
        files: What to compress, in order.
        allocator: Decides how many tokens each input keeps.
        write: Called with the results of each batch, before they are yielded.

    Yields:
        The result of each file, in the order of the listing.
    """
    copies = CopyFinder(runner.loader.writer)

    def begin(batch: Sequence[LoadResult]) -> BegunBatch:
        refused = allocator.refused
        checked = copies.replace_copies(
            [
                FailedInput(item.source, refused[item.number])
                if isinstance(item, LoadedInput) and item.number in refused
                else item
                for item in batch
            ]
        )
        accepted = [item for item in checked if isinstance(item, LoadedInput)]
        begun = begin_batch(runner.pruner, accepted) if runner.overlaps and accepted else BegunBatch(accepted)
        return replace(begun, batch=checked)

    def on_bad_item(item: LoadedInput) -> Result:
        return FailedInput(item.source, non_finite_error(item.source))

    def on_too_large(item: LoadedInput) -> Result:
        error = MediaError(f"{item.source}: not enough memory for one image", "try --device cpu")
        return FailedInput(item.source, error)

    for _, begun in runner.load_batches(files, runner.loader, begin):
        prune = partial(prune_batch, runner.pruner, allocator=allocator, begun=begun)
        isolate = partial(run_without_bad_items, prune, on_bad_item=on_bad_item)
        pruned = iter(runner.run(isolate, begun.items, on_too_large, begun.start))
        results = list[Result]()
        for item in begun.batch:
            if isinstance(item, LoadedInput):
                results.append(result := next(pruned))
                if isinstance(result, FailedInput):
                    copies.fail(item, result)
            else:
                results.append(copies.check(item) if isinstance(item, CopiedInput) else item)
        write(results)
        yield from results


@dataclass(frozen=True)
class BegunBatch:
    """A batch that waits for its selection.

    Attributes:
        items: The items that are encoded.
        batch: All items, and what became of those that are not encoded.
        encoded: What the tower gives, or will give; empty if it was not begun yet.
        event: Comes when the tower is done.
        start: When the batch was begun, in seconds of `time.perf_counter`.
    """

    items: Sequence[LoadedInput]
    batch: Sequence[LoadResult] = ()
    encoded: Sequence[Encoded] = ()
    event: torch.Event | None = None
    start: float = field(default_factory=time.perf_counter)


def begin_batch(pruner: Pruner, items: Sequence[LoadedInput]) -> BegunBatch:
    """Gives a batch to the tower, and does not wait for it. If memory runs out, it is encoded later, in parts."""
    pruner.load_vision()
    start = time.perf_counter()
    try:
        encoded = pruner.encode([item.pixels for item in items])
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return BegunBatch(items)
    event = record_event(encoded[0].segments[0].features.device)
    return BegunBatch(items, encoded=encoded, event=event, start=start)


def prune_batch(
    pruner: Pruner, batch: Sequence[LoadedInput], allocator: TokenAllocator, begun: BegunBatch
) -> list[Result]:
    """Encodes a batch, unless that was begun, and keeps as many tokens of each item as the allocator says.

    Raises:
        NonFiniteError: Tokens of some items have NaN or infinity; `rows` are their rows in the batch.
    """
    is_begun = batch is begun.items and begun.encoded
    encoded = begun.encoded if is_begun else pruner.encode([item.pixels for item in batch])
    with run_beside(begun.event if is_begun else None, encoded[0].segments[0].features.device):
        information = pruner.information(encoded)
        phis = [item_information(values, item) for values, item in zip(information, encoded, strict=True)]
        counts = allocator.token_counts(batch, phis)
        kept = to_host(pruner.keep(encoded, counts, information))
    allocator.record(batch, phis, counts)
    return [
        Entry(provenance=item.provenance, tokens=tokens, phi=phi, stamp=item.stamp)
        for item, tokens, phi in zip(batch, kept, phis, strict=True)
    ]


def write_results(writer: CacheWriter, results: Sequence[Result]) -> None:
    """Puts the results of a batch into a cache."""
    for result in results:
        if isinstance(result, Entry):
            writer.add(result)
        elif isinstance(result, CopiedInput):
            writer.add_copy(result.provenance, result.stamp)
        elif isinstance(result, FailedInput):
            writer.fail(result.source, result.error)
        else:
            writer.clear_failure(result.source)
            if result.new_stamp:
                writer.update_stamp(result.source, result.new_stamp)


def open_writer(
    session: Session, pruner: Pruner, folder: Path, store: TokenStore, tool: str, max_shard_items: int = MAX_SHARD_ITEMS
) -> CacheWriter:
    """Opens a cache for writing.

    Args:
        session: The model.
        pruner: Selects the tokens.
        folder: The cache's folder. It is created or continued.
        store: How tokens are stored.
        tool: Version of this program, which is recorded.
        max_shard_items: Items of a shard file.

    Raises:
        CacheError: The folder cannot be written, or holds a cache that was made otherwise.
    """
    run = make_run(session.checkpoint, session.settings, pruner.budget, session.dtype_name, store)
    return CacheWriter(folder, run, tool, ShardLimits(max_shard_items), str(pruner.sampling))
