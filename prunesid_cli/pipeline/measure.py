"""Measures the information (phi, Eq. 7) of inputs, for runs that plan before they write and for calibration."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from prunesid_cli.errors import PruneSIDError, non_finite_error
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.pipeline.batches import BatchRunner
from prunesid_cli.pipeline.copies import RecentDigests
from prunesid_cli.pipeline.load import InputLoader, LoadedInput, LoadResult
from prunesid_cli.pipeline.results import CachedInput, CopiedInput, FailedInput
from prunesid_cli.pipeline.segments import item_information
from prunesid_cli.pipeline.unchanged import read_stamp
from prunesid_cli.tokencache import Measurement, MeasurementLog


@dataclass(frozen=True)
class MeasuredInput:
    """The information of one input.

    Attributes:
        source: Its path.
        phi: Its information, 1 - rho.
        total: Its visual tokens.
        kept: Tokens that the cache holds of it; None if it is not cached.
        error: Why it could not be measured.
        is_recalled: Whether an earlier run measured it, so that nothing was decoded.
    """

    source: str
    phi: float = 0.0
    total: int = 0
    kept: int | None = None
    error: PruneSIDError | None = None
    is_recalled: bool = False
    num_images: ClassVar[int] = 0
    nbytes: ClassVar[int] = 0


def recall(loader: InputLoader, log: MeasurementLog | None, file: ListedFile) -> MeasuredInput | None:
    """What an earlier run that was interrupted measured of a file that is not cached; None if nothing."""
    is_cached = loader.writer is not None and loader.writer.index.find(file.source) is not None
    if log is None or file.error or loader.by_content or is_cached:
        return None
    stamp = read_stamp(file.source, file.columns)
    recalled = log.find(file.source, stamp) if stamp else None
    return MeasuredInput(file.source, *recalled, is_recalled=True) if recalled else None


def measure(
    runner: BatchRunner, files: Iterable[ListedFile], log: MeasurementLog | None = None
) -> Iterator[MeasuredInput]:
    """Measures files, batch by batch.

    Args:
        runner: Loads the files and sizes the batches.
        files: What to measure, in order.
        log: Measurements of an earlier run that was interrupted, to which new ones are added.

    Yields:
        The information of each file, in the order of the listing. Cached inputs have the value that the cache holds.
    """

    def load(number: int, file: ListedFile) -> LoadResult | MeasuredInput:
        return recall(runner.loader, log, file) or runner.loader(number, file)

    def measure_batch(batch: Sequence[LoadedInput]) -> list[float]:
        encoded = runner.pruner.encode([item.pixels for item in batch])
        information = runner.pruner.information(encoded)
        return [item_information(values, item) for values, item in zip(information, encoded, strict=True)]

    writer, recent = runner.loader.writer, RecentDigests[MeasuredInput]()

    def find(item: LoadedInput | CopiedInput) -> MeasuredInput | None:
        """What is known of contents that the cache holds, or that were measured."""
        held = writer.find_contents(item.provenance.digest) if writer else None
        if held:
            return MeasuredInput(item.source, held.phi, held.layout.total, held.kept)
        return recent.get(item.provenance.digest)

    for batch, _ in runner.load_batches(files, load):
        new = dict[str, LoadedInput]()
        for item in batch:
            if isinstance(item, LoadedInput) and not find(item):
                new.setdefault(item.provenance.digest, item)
        loaded = list(new.values())
        # An item that does not fit into memory counts as empty: the error is reported when it is encoded.
        phis = runner.run(measure_batch, loaded, lambda item: 0.0)
        for loaded_item, phi in zip(loaded, phis, strict=True):
            total = loaded_item.pixels.layout.total
            recent[loaded_item.provenance.digest] = MeasuredInput(loaded_item.source, phi, total)
        if log is not None and loaded:
            log.add(
                Measurement(item.source, item.stamp, phi, item.pixels.layout.total)
                for item, phi in zip(loaded, phis, strict=True)
                if item.stamp and math.isfinite(phi)
            )
        for item in batch:
            if isinstance(item, MeasuredInput):
                yield item
            elif isinstance(item, FailedInput):
                yield MeasuredInput(item.source, error=item.error)
            elif isinstance(item, CachedInput):
                yield MeasuredInput(item.source, item.entry.phi, item.entry.total, item.entry.kept)
            else:
                found = find(item)
                is_right = found is not None and math.isfinite(found.phi)
                error = None if is_right else non_finite_error(item.source)
                yield replace(found or MeasuredInput(item.source), source=item.source, error=error)
