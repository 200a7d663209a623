"""The chains: pictures and clips -> token sets -> answers, and pictures and clips -> cache. Nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from prunesid_cli.allotment import Allotment, Even, Measured, planned, running
from prunesid_cli.decoding import Decoded, Failed, Held, Ready, ahead, batches, decode
from prunesid_cli.errors import MediaError, NonFiniteError, PruneSIDError
from prunesid_cli.families.base import LanguageHalf
from prunesid_cli.listing import Found
from prunesid_cli.media import Media
from prunesid_cli.memory import within_memory
from prunesid_cli.pruner import Pruner
from prunesid_cli.segments import Information, of_item
from prunesid_cli.tokencache import CacheWriter, Entry, Known
from prunesid_cli.types import Answer, Encoded, Generation, TokenSet

AHEAD = 2
"""Batches that are decoded while another is encoded."""


def ask(
    pruner: Pruner, language: LanguageHalf, media: Sequence[Media], prompt: str, how: Generation
) -> tuple[Answer, list[TokenSet]]:
    """Answer one prompt about one or several images."""
    language.check(prompt, len(media))
    with pruner.clock.stage("preprocess"):
        companions = [sum(other.is_clip == item.is_clip for other in media) - 1 for item in media]
        pixels = [pruner.preprocess(*one) for one in zip(media, companions, strict=True)]
    encoded = pruner.encode(pixels)
    try:
        items = pruner.prune(encoded)
    except NonFiniteError as error:
        raise not_finite(media[error.rows[0]].source) from error
    with pruner.clock.stage("generate"):
        answers = language.generate([language.embed(prompt, items)], how)
    return answers[0], items


def not_finite(source: str) -> NonFiniteError:
    return NonFiniteError(f"{source}: the vision tower gives NaN or infinity", hint="try --dtype fp32")


@dataclass(frozen=True)
class Outcome:
    """What became of one input: kept, already in the cache (`entry` None, `error` None), or an error."""

    source: str
    entry: Entry | None = None
    error: PruneSIDError | None = None


def compress(
    pruner: Pruner, found: Iterable[Found], writer: CacheWriter, batch_size: int, stream: bool = False
) -> Iterator[Outcome]:
    """Encode, prune and write images; yields what became of each, in the order of the listing.

    stream: decide of each image when it comes, and not of all once all were measured.
    """
    if not pruner.spreads:
        allotment: Allotment = Even(pruner)
    elif stream:
        allotment = running(pruner, writer.history())
    else:
        found = list(found)
        allotment = planned(pruner, measure(pruner, found, writer.held, batch_size))
    for batch in batches(_decoded(pruner, found, writer.held, batch_size), batch_size):
        outcomes = _outcomes(pruner, batch, allotment)
        for one in batch:
            outcome = outcomes[one.source]
            if outcome.entry:
                writer.add(outcome.entry)
            elif outcome.error:
                writer.fail(one.source, outcome.error)
            else:
                writer.settle(one.source)
            yield outcome


def measure(
    pruner: Pruner, found: Iterable[Found], held: Callable[[str, str], Known | None], batch_size: int
) -> Iterator[Measured]:
    """The information of each image, in the order of the listing. Of one that is `held` it was measured before."""
    for batch in batches(_decoded(pruner, found, held, batch_size), batch_size):
        ready = [one for one in batch if isinstance(one, Ready)]
        measured = within_memory(lambda some: _measured(pruner, some), ready, _unmeasured)
        values = {one.source: one for one in measured}
        for one in batch:
            if isinstance(one, Failed):
                yield Measured(one.source, error=one.error)
            elif isinstance(one, Held):
                yield Measured(one.source, one.item.phi, one.item.total, one.item.kept)
            elif math.isfinite(values[one.source].phi):
                yield values[one.source]
            else:
                yield Measured(one.source, error=not_finite(one.source))


def _measured(pruner: Pruner, batch: Sequence[Ready]) -> list[Measured]:
    return _encoded(pruner, batch)[2] if batch else []


def _encoded(pruner: Pruner, batch: Sequence[Ready]) -> tuple[list[Encoded], list[Information], list[Measured]]:
    """What the tower makes of a batch, the information of each segment, and of each item."""
    encoded = pruner.encode([one.pixels for one in batch])
    values = pruner.information(encoded)
    items = zip(batch, values, encoded, strict=True)
    return encoded, values, [Measured(one.source, of_item(own, item), item.layout.total) for one, own, item in items]


def _unmeasured(one: Ready) -> Measured:
    """Of what does not fit into memory; that it cannot be encoded is said when it is tried."""
    return Measured(one.source, 0.0, one.pixels.layout.total)


def _decoded(
    pruner: Pruner, found: Iterable[Found], held: Callable[[str, str], Known | None], batch_size: int
) -> Iterator[Decoded]:
    return ahead(found, lambda one: decode(one, pruner, held), AHEAD * batch_size)


def _outcomes(pruner: Pruner, batch: Sequence[Decoded], allotment: Allotment) -> dict[str, Outcome]:
    outcomes, ready = dict[str, Outcome](), list[Ready]()
    for one in batch:
        if isinstance(one, Failed):
            outcomes[one.source] = Outcome(one.source, error=one.error)
        elif isinstance(one, Held):
            outcomes[one.source] = Outcome(one.source)
        elif one.source in allotment.refused:
            outcomes[one.source] = Outcome(one.source, error=allotment.refused[one.source])
        else:
            ready.append(one)
    done = within_memory(lambda some: _entries(pruner, some, allotment), ready, _too_large)
    return outcomes | {outcome.source: outcome for outcome in done}


def _too_large(one: Ready) -> Outcome:
    return Outcome(one.source, error=MediaError(f"{one.source}: not enough memory for one image", "try --device cpu"))


def _entries(pruner: Pruner, batch: Sequence[Ready], allotment: Allotment) -> list[Outcome]:
    """Encode and prune; an image whose tokens are not finite costs itself alone."""
    if not batch:
        return []
    try:
        encoded, values, sized = _encoded(pruner, batch)
        counts = allotment.counts(sized)
        kept = pruner.keep(encoded, counts, values)
    except NonFiniteError as error:
        bad = [batch[row].source for row in error.rows]
        good = _entries(pruner, [one for row, one in enumerate(batch) if row not in error.rows], allotment)
        return good + [Outcome(source, error=not_finite(source)) for source in bad]
    allotment.settle(sized, counts)
    return [
        Outcome(one.source, _entry(one, tokens, measured.phi))
        for one, tokens, measured in zip(batch, kept, sized, strict=True)
    ]


def _entry(one: Ready, tokens: TokenSet, phi: float) -> Entry:
    tokens = replace(tokens, tokens=tokens.tokens.cpu())
    return Entry(one.source, one.digest, one.size, tokens, phi, one.notes, one.sampling, one.decoder)
