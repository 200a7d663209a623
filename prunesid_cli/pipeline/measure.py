"""How much is in each image of a run that plans before it writes: pictures and clips -> information -> shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from prunesid_cli.inputs.listing import Found
from prunesid_cli.pipeline.compress import Job, encode_sized, not_finite
from prunesid_cli.pipeline.load import Decoded, Failed, Held, Ready
from prunesid_cli.pipeline.token_budgets import Allotment, Measured, Measurements, planned
from prunesid_cli.tokencache import Measurement


def plan(job: Job, found: Iterable[Found], told: Callable[[Measured], object]) -> Allotment:
    """How many tokens each image of a closed collection gets, every one of which is measured for that.

    Raises:
        KeyboardInterrupt: the run was asked to stop meanwhile.
    """

    def measured() -> Iterator[Measured]:
        for one in measure(job, found):
            told(one)
            yield one

    measurements = Measurements(measured())
    job.stop.check()
    return planned(job.pruner, measurements)


def measure(job: Job, found: Iterable[Found]) -> Iterator[Measured]:
    """The information of each image, in the order of the listing. Of one that is held it was measured before."""
    cached = job.decoder.cached

    def decode(number: int, one: Found) -> Decoded | Measured:
        known = None if one.error else cached.recall(one.source)
        return Measured(one.source, *known, is_recalled=True) if known else job.decoder(number, one)

    for batch in job.batches(found, decode):
        ready = [one for one in batch if isinstance(one, Ready)]
        values = job.encode(lambda some: encode_sized(job.pruner, some)[2], ready, _unmeasured)
        if cached.measured and ready:
            cached.measured.add(_settled(ready, values))
        measured = iter(values)
        for one in batch:
            if isinstance(one, Measured):
                yield one
            elif isinstance(one, Failed):
                yield Measured(one.source, error=one.error)
            elif isinstance(one, Held):
                yield Measured(one.source, one.item.phi, one.item.total, one.item.kept)
            else:
                value = next(measured)
                yield value if math.isfinite(value.phi) else Measured(one.source, error=not_finite(one.source))


def _settled(ready: Sequence[Ready], values: Sequence[Measured]) -> Iterator[Measurement]:
    """What can be believed as long as the file looks as it does."""
    for one, value in zip(ready, values, strict=True):
        if one.stamp and math.isfinite(value.phi):
            yield Measurement(one.source, one.stamp, value.phi, value.total)


def _unmeasured(one: Ready) -> Measured:
    """Of what does not fit into memory; that it cannot be encoded is said when it is tried."""
    return Measured(one.source, 0.0, one.pixels.layout.total)
