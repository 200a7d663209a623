"""How much is in each image of a run that plans before it writes: pictures and clips -> information -> shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.pipeline.compress import BatchRunner, encode_sized, non_finite_error
from prunesid_cli.pipeline.load import CachedInput, Decoded, FailedInput, LoadedInput
from prunesid_cli.pipeline.token_budgets import ItemInformation, Measurements, TokenAllocator, planned
from prunesid_cli.tokencache import Measurement


def plan(job: BatchRunner, found: Iterable[ListedFile], told: Callable[[ItemInformation], object]) -> TokenAllocator:
    """How many tokens each image of a closed collection gets, every one of which is measured for that.

    Raises:
        KeyboardInterrupt: the run was asked to stop meanwhile.
    """

    def measured() -> Iterator[ItemInformation]:
        for one in measure(job, found):
            told(one)
            yield one

    measurements = Measurements(measured())
    job.stop.raise_if_requested()
    return planned(job.pruner, measurements)


def measure(job: BatchRunner, found: Iterable[ListedFile]) -> Iterator[ItemInformation]:
    """The information of each image, in the order of the listing. Of one that is held it was measured before."""
    cached = job.decoder.cached

    def decode(number: int, one: ListedFile) -> Decoded | ItemInformation:
        known = None if one.error else cached.recall(one.source)
        return ItemInformation(one.source, *known, is_recalled=True) if known else job.decoder(number, one)

    for batch in job.batches(found, decode):
        ready = [one for one in batch if isinstance(one, LoadedInput)]
        values = job.encode(lambda some: encode_sized(job.pruner, some)[2], ready, _unmeasured)
        if cached.measured and ready:
            cached.measured.add(_settled(ready, values))
        measured = iter(values)
        for one in batch:
            if isinstance(one, ItemInformation):
                yield one
            elif isinstance(one, FailedInput):
                yield ItemInformation(one.source, error=one.error)
            elif isinstance(one, CachedInput):
                yield ItemInformation(one.source, one.item.phi, one.item.total, one.item.kept)
            else:
                value = next(measured)
                yield value if math.isfinite(value.phi) else ItemInformation(one.source, error=non_finite_error(one.source))


def _settled(ready: Sequence[LoadedInput], values: Sequence[ItemInformation]) -> Iterator[Measurement]:
    """What can be believed as long as the file looks as it does."""
    for one, value in zip(ready, values, strict=True):
        if one.stamp and math.isfinite(value.phi):
            yield Measurement(one.source, one.stamp, value.phi, value.total)


def _unmeasured(one: LoadedInput) -> ItemInformation:
    """Of what does not fit into memory; that it cannot be encoded is said when it is tried."""
    return ItemInformation(one.source, 0.0, one.pixels.layout.total)
