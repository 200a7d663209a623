"""The chains: pictures and clips -> token sets -> answers, and pictures and clips -> cache. Nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from prunesid_cli.errors import MediaError, NonFiniteError, PruneSIDError
from prunesid_cli.inputs.image import Media
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.pipeline.load import CachedInput, Decoded, InputLoader, FailedInput, LoadedInput
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.pipeline.segments import Information, item_information
from prunesid_cli.pipeline.token_budgets import ItemInformation, TokenAllocator
from prunesid_cli.runtime.batch_size import BatchSizeTuner
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom
from prunesid_cli.runtime.prefetch import Prefetcher
from prunesid_cli.runtime.shutdown import StopRequest
from prunesid_cli.tokencache import CacheWriter, Entry
from prunesid_cli.types import Answer, Encoded, Generation, Pixels, TokenSet

R = TypeVar("R")
D = TypeVar("D", bound=Decoded | ItemInformation)

AHEAD, SPARE = 2, 8
"""Batches that are decoded while another is encoded, and inputs on top: of them some may be held, or faulty."""
MOST = 256
"""Inputs of a batch, held and faulty ones included."""


def ask(
    pruner: Pruner, language: LanguageHalf, media: Sequence[Media], prompt: str, generation: Generation
) -> tuple[Answer, list[TokenSet]]:
    """Answer one prompt about one or several images."""
    language.check_prompt(prompt, len(media))
    return answer_encoded(pruner, language, media, encode_media(pruner, media), prompt, generation)


def encode_media(pruner: Pruner, media: Sequence[Media]) -> list[Encoded]:
    """What the tower makes of the items of one prompt."""
    return pruner.encode(preprocess_media(pruner, media))


def preprocess_media(pruner: Pruner, media: Sequence[Media]) -> list[Pixels]:
    """What the tower takes of the items of one prompt, which may change how each is read."""
    with pruner.stopwatch.stage("preprocess"):
        num_other_images = [sum(other.is_clip == item.is_clip for other in media) - 1 for item in media]
        return [pruner.preprocess(*one) for one in zip(media, num_other_images, strict=True)]


def answer_encoded(
    pruner: Pruner,
    language: LanguageHalf,
    media: Sequence[Media],
    encoded: Sequence[Encoded],
    prompt: str,
    generation: Generation,
) -> tuple[Answer, list[TokenSet]]:
    """Prune what was seen of some media, and answer from the rest."""
    try:
        items = pruner.prune(encoded)
    except NonFiniteError as error:
        raise non_finite_error(media[error.rows[0]].source) from error
    with pruner.stopwatch.stage("generate"):
        answers = language.generate([language.embed(prompt, items)], generation)
    return answers[0], items


def non_finite_error(source: str) -> NonFiniteError:
    return NonFiniteError(f"{source}: the vision tower gives NaN or infinity", hint="try --dtype fp32")


@dataclass(frozen=True)
class InputResult:
    """What became of one input: kept, in the cache already, or an error."""

    source: str
    entry: Entry | None = None
    held: CachedInput | None = None
    error: PruneSIDError | None = None


@dataclass(frozen=True)
class BatchRunner:
    """What a run over many inputs works with: how they are decoded, how large batches are, whether to stop."""

    decoder: InputLoader
    pace: BatchSizeTuner
    stop: StopRequest = field(default_factory=StopRequest)

    @property
    def pruner(self) -> Pruner:
        return self.decoder.pruner

    def batches(self, found: Iterable[ListedFile], decode: Callable[[int, ListedFile], D]) -> Iterator[list[D]]:
        """Inputs decoded ahead, in the order of the listing."""
        depth = lambda: AHEAD * self.pace.size + SPARE  # noqa: E731
        work: Callable[[tuple[int, ListedFile]], D] = lambda one: decode(*one)  # noqa: E731
        with Prefetcher(
            enumerate(found), work, num_bytes=lambda item: item.bytes, max_ahead=depth, stop=self.stop
        ) as decoded:
            yield from decoded.batches(
                size_of=lambda item: item.regions, max_size=lambda: self.pace.size, max_items=MOST
            )

    def encode(
        self,
        work: Callable[[Sequence[LoadedInput]], list[R]],
        batch: Sequence[LoadedInput],
        alone: Callable[[LoadedInput], R],
    ) -> list[R]:
        """`work` on a batch, whose time and need of memory say how large the next ones are."""

        def timed(some: Sequence[LoadedInput]) -> list[R]:
            began = time.perf_counter()
            done = work(some)
            self.pace.record(_regions(some), time.perf_counter() - began)
            return done

        return run_in_halves_on_oom(timed, batch, alone, lambda: self.pace.shrink(_regions(batch))) if batch else []


def _regions(batch: Sequence[LoadedInput]) -> int:
    return sum(one.regions for one in batch)


def compress(
    job: BatchRunner, found: Iterable[ListedFile], allotment: TokenAllocator, write: Callable[[Sequence[InputResult]], object]
) -> Generator[InputResult, None, None]:
    """Encode and prune images and clips, and hand them on, a batch at a time; yields what became of each, in the order
    of the listing."""
    for batch in job.batches(found, job.decoder):
        outcomes = _outcomes(job, batch, allotment)
        write(outcomes)
        yield from outcomes


def record(writer: CacheWriter, outcomes: Sequence[InputResult]) -> None:
    """Into the cache."""
    for one in outcomes:
        if one.entry:
            writer.add(one.entry)
        elif one.error:
            writer.fail(one.source, one.error)
        else:
            writer.clear_failure(one.source)
            if one.held and one.held.newer:
                writer.update_stamp(one.source, one.held.newer)


def encode_sized(
    pruner: Pruner, batch: Sequence[LoadedInput]
) -> tuple[list[Encoded], list[Information], list[ItemInformation]]:
    """What the tower makes of a batch, the information of each segment, and of each item."""
    encoded = pruner.encode([one.pixels for one in batch])
    values = pruner.information(encoded)
    sized = [
        ItemInformation(one.source, item_information(own, item), item.layout.total, number=one.number)
        for one, own, item in zip(batch, values, encoded, strict=True)
    ]
    return encoded, values, sized


def _outcomes(job: BatchRunner, batch: Sequence[Decoded], allotment: TokenAllocator) -> list[InputResult]:
    refused = allotment.refused
    ready = [one for one in batch if isinstance(one, LoadedInput) and one.number not in refused]
    done = iter(job.encode(lambda some: _entries(job.pruner, some, allotment), ready, _too_large))
    outcomes = list[InputResult]()
    for one in batch:
        if isinstance(one, FailedInput):
            outcomes.append(InputResult(one.source, error=one.error))
        elif isinstance(one, CachedInput):
            outcomes.append(InputResult(one.source, held=one))
        else:
            error = refused.get(one.number)
            outcomes.append(InputResult(one.source, error=error) if error else next(done))
    return outcomes


def _too_large(one: LoadedInput) -> InputResult:
    return InputResult(
        one.source, error=MediaError(f"{one.source}: not enough memory for one image", "try --device cpu")
    )


def _entries(pruner: Pruner, batch: Sequence[LoadedInput], allotment: TokenAllocator) -> list[InputResult]:
    """Encode and prune; an image whose tokens are not finite costs itself alone."""
    if not batch:
        return []
    try:
        encoded, values, sized = encode_sized(pruner, batch)
        counts = allotment.counts(sized)
        kept = to_host(pruner.keep(encoded, counts, values))
    except NonFiniteError as error:
        bad = set(error.rows)
        good = iter(_entries(pruner, [one for row, one in enumerate(batch) if row not in bad], allotment))
        return [
            InputResult(one.source, error=non_finite_error(one.source)) if row in bad else next(good)
            for row, one in enumerate(batch)
        ]
    allotment.settle(sized, counts)
    return [
        InputResult(one.source, _entry(one, tokens, measured.phi))
        for one, tokens, measured in zip(batch, kept, sized, strict=True)
    ]


def to_host(items: Sequence[TokenSet]) -> Sequence[TokenSet]:
    """Their tokens on the CPU, by one copy: the host waits for each."""
    if all(one.tokens.device.type == "cpu" for one in items):
        return items
    rows = torch.cat([one.tokens for one in items]).cpu().split([len(one.tokens) for one in items])
    return [replace(one, tokens=own) for one, own in zip(items, rows, strict=True)]


def _entry(one: LoadedInput, tokens: TokenSet, phi: float) -> Entry:
    return Entry(provenance=one.provenance, tokens=tokens, phi=phi, stamp=one.stamp)
