"""The main flow of `compress`: files -> pixels -> visual tokens -> kept tokens -> cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from pathlib import Path

from prunesid_cli.errors import MediaError, non_finite_error
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.pipeline.batches import BatchRunner
from prunesid_cli.pipeline.load import LoadedInput
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.results import CachedInput, FailedInput
from prunesid_cli.pipeline.segments import item_information, to_host
from prunesid_cli.pipeline.session import Session, make_run
from prunesid_cli.pipeline.settings import TokenStore
from prunesid_cli.pipeline.token_budgets import TokenAllocator
from prunesid_cli.runtime.isolate import run_without_bad_items
from prunesid_cli.tokencache import CacheWriter, Entry, ShardLimits
from prunesid_cli.tokencache.format import MAX_SHARD_ITEMS

Result = Entry | CachedInput | FailedInput
"""What became of an input: tokens for the cache, a hit in the cache, or an error."""


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
    prune = partial(prune_batch, runner.pruner, allocator=allocator)

    def on_bad_item(item: LoadedInput) -> Result:
        return FailedInput(item.source, non_finite_error(item.source))

    def on_too_large(item: LoadedInput) -> Result:
        error = MediaError(f"{item.source}: not enough memory for one image", "try --device cpu")
        return FailedInput(item.source, error)

    for batch in runner.load_batches(files, runner.loader):
        refused = allocator.refused
        accepted = [item for item in batch if isinstance(item, LoadedInput) and item.number not in refused]
        pruned = iter(runner.run(lambda part: run_without_bad_items(prune, part, on_bad_item), accepted, on_too_large))
        results = list[Result]()
        for item in batch:
            if not isinstance(item, LoadedInput):
                results.append(item)
            elif item.number in refused:
                results.append(FailedInput(item.source, refused[item.number]))
            else:
                results.append(next(pruned))
        write(results)
        yield from results


def prune_batch(pruner: Pruner, batch: Sequence[LoadedInput], allocator: TokenAllocator) -> list[Result]:
    """Encodes a batch and keeps as many tokens of each item as the allocator says.

    Raises:
        NonFiniteError: Tokens of some items have NaN or infinity; `rows` are their rows in the batch.
    """
    encoded = pruner.encode([item.pixels for item in batch])
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
