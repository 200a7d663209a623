"""The chains: pictures -> token sets -> answers, and pictures -> cache -> answers. Nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from prunesid_cli.errors import MediaError, NonFiniteError, PruneSIDError, UsageError
from prunesid_cli.families.base import LanguageHalf, VisionHalf
from prunesid_cli.listing import Found
from prunesid_cli.media import Media, load_image
from prunesid_cli.selection import select
from prunesid_cli.selection.budget import Budget, apportion, limits, single
from prunesid_cli.selection.similarity import phi
from prunesid_cli.tokencache import CacheWriter, Entry, Item, Shard, read_tokens
from prunesid_cli.types import SUMMARY, Answer, Encoded, Generation, TokenSet

T = TypeVar("T")
AHEAD = 2
"""Batches that are decoded while another is encoded."""


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


@dataclass(frozen=True)
class Pruner:
    """A vision half with what to keep and how to choose it; `phi_ref` is the information of an average image."""

    vision: VisionHalf
    budget: Budget
    method: str
    phi_ref: float | None
    clock: Clock = field(default_factory=Clock)

    def encode(self, pixels: Sequence[Tensor]) -> Encoded:
        with self.clock.stage("encode"):
            return self.vision.encode(pixels)

    def information(self, encoded: Encoded) -> list[float]:
        """phi of each image of a batch."""
        values: list[float] = phi(encoded.features).tolist()
        return values

    def counts(self, values: Sequence[float]) -> list[int]:
        """Tokens for each of a closed collection of images, given the information of each."""
        mean, n = self.budget.tokens(self.vision.total), self.vision.total
        if not self.budget.dynamic or mean >= n:
            return [min(mean, n)] * len(values)
        floor, ceiling = limits(mean, n)
        if len(values) > 1:
            return apportion(values, mean, floor, ceiling)
        if self.phi_ref is None:
            raise UsageError(
                "--dynamic for one image needs the information of an average one, which this model does not carry",
                hint="leave out --dynamic, or give several images",
            )
        return [single(value, self.phi_ref, mean, floor, ceiling) for value in values]

    def keep(self, encoded: Encoded, counts: Sequence[int]) -> list[TokenSet]:
        """The kept tokens of each image of a batch, CLS first where it is kept.

        Raises:
            NonFiniteError: with `rows`, the images whose features or saliency are not finite.
        """
        with self.clock.stage("select"):
            total = self.vision.total
            reserved = int(encoded.summary is not None)
            kept = select(encoded.features, encoded.saliency, counts, self.method, reserved)
            return [
                self._token_set(encoded, row, indices if count < total else None)
                for row, (count, indices) in enumerate(zip(counts, kept, strict=True))
            ]

    def _token_set(self, encoded: Encoded, row: int, indices: Tensor | None) -> TokenSet:
        """indices None: everything, as the stock model reads it."""
        features, summary = encoded.features[row], encoded.summary
        with_summary = summary is not None and (indices is not None or encoded.summary_is_stock)
        tokens = features if indices is None else features[indices]
        places = range(len(features)) if indices is None else indices.tolist()
        if with_summary and summary is not None:
            tokens = torch.cat([summary[row : row + 1], tokens])
        names = (SUMMARY, *places) if with_summary else tuple(places)
        return TokenSet(tokens, names, self.vision.grid, self.vision.total)


def ask(
    pruner: Pruner, language: LanguageHalf, media: Sequence[Media], prompt: str, how: Generation,
    stream: Callable[[str], None] | None = None,
) -> tuple[Answer, list[TokenSet]]:  # fmt: skip
    """Answer one prompt about one or several images."""
    with pruner.clock.stage("preprocess"):
        pixels = [pruner.vision.preprocess(item.image) for item in media]
    encoded = pruner.encode(pixels)
    try:
        items = pruner.keep(encoded, pruner.counts(pruner.information(encoded)))
    except NonFiniteError as error:
        raise not_finite(media[error.rows[0]].source) from error
    with pruner.clock.stage("generate"):
        answers = language.generate([language.embed(prompt, items)], how, stream)
    return answers[0], items


def not_finite(source: str) -> NonFiniteError:
    return NonFiniteError(f"{source}: the vision tower gives NaN or infinity", hint="try --dtype fp32")


@dataclass(frozen=True)
class Decoded:
    """One input, as far as it came: pixels for the tower, or what went wrong."""

    source: str
    media: Media | None = None
    pixels: Tensor | None = None
    error: PruneSIDError | None = None


def decode(found: Found, preprocess: Callable[[Image], Tensor], held: Callable[[str, str], bool]) -> Decoded:
    """Read, decode and preprocess one image that is not `held` yet; any fault of the input becomes a record."""
    if found.error:
        return Decoded(found.source, error=found.error)
    try:
        media = load_image(found.source)
        return Decoded(found.source, media, None if held(found.source, media.digest) else preprocess(media.image))
    except PruneSIDError as error:
        return Decoded(found.source, error=error)
    except Exception as error:
        problem = f"{found.source}: the image processor failed: {type(error).__name__}: {error}"
        return Decoded(found.source, error=MediaError(problem, f"see more with: prunesid ask {found.source} ? --debug"))


def ahead(items: Iterable[T], work: Callable[[T], Decoded], depth: int) -> Iterator[Decoded]:
    """Map in threads, in order, at most `depth` items in advance."""
    with ThreadPoolExecutor(2) as pool:
        source = iter(items)
        waiting = [pool.submit(work, item) for item in islice(source, depth)]
        try:
            while waiting:
                done = waiting.pop(0).result()
                waiting += [pool.submit(work, item) for item in islice(source, 1)]
                yield done
        finally:
            for future in waiting:
                future.cancel()


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


@dataclass(frozen=True)
class Outcome:
    """What became of one input: kept, already in the cache (`entry` None, `error` None), or an error."""

    source: str
    entry: Entry | None = None
    error: PruneSIDError | None = None


def compress(pruner: Pruner, found: Iterable[Found], writer: CacheWriter, batch_size: int) -> Iterator[Outcome]:
    """Encode, prune and write images; yields what became of each, in the order of the listing."""
    plan = None
    if pruner.budget.dynamic:
        found = list(found)
        plan = _plan(pruner, found, writer, batch_size)
    decoded = ahead(found, lambda one: decode(one, pruner.vision.preprocess, writer.holds), AHEAD * batch_size)
    for batch in batches(decoded, batch_size):
        entries = _entries(pruner, [one for one in batch if one.pixels is not None], plan)
        for one in batch:
            outcome = entries.get(one.source) or Outcome(one.source, error=one.error)
            if outcome.entry:
                writer.add(outcome.entry)
            elif outcome.error:
                writer.fail(one.source, outcome.error)
            else:
                writer.settle(one.source)
            yield outcome


def _entries(pruner: Pruner, batch: list[Decoded], plan: dict[str, int] | None) -> dict[str, Outcome]:
    """Encode and prune what can be; an image whose tokens are not finite, or too large, costs itself alone."""
    if not batch:
        return {}
    try:
        return _encoded(pruner, batch, plan)
    except NonFiniteError as error:
        bad = {batch[row].source for row in error.rows}
        good = _entries(pruner, [one for one in batch if one.source not in bad], plan)
        return good | {source: Outcome(source, error=not_finite(source)) for source in bad}
    except torch.OutOfMemoryError:
        half = len(batch) // 2
        if not half:
            (one,) = batch
            too_large = MediaError(f"{one.source}: not enough memory for one image", "try --dtype bf16 or --device cpu")
            return {one.source: Outcome(one.source, error=too_large)}
        return _entries(pruner, batch[:half], plan) | _entries(pruner, batch[half:], plan)


def _encoded(pruner: Pruner, batch: list[Decoded], plan: dict[str, int] | None) -> dict[str, Outcome]:
    encoded = pruner.encode([one.pixels for one in batch if one.pixels is not None])
    values = pruner.information(encoded)
    counts = [plan[one.source] for one in batch] if plan is not None else pruner.counts(values)
    kept = pruner.keep(encoded, counts)
    return {
        one.source: Outcome(one.source, Entry(one.source, media.digest, media.size, tokens, value, media.notes))
        for one, tokens, value in zip(batch, kept, values, strict=True)
        if (media := one.media)
    }


def _plan(pruner: Pruner, found: list[Found], writer: CacheWriter, batch_size: int) -> dict[str, int]:
    """Eq. 7 over a collection: a first pass measures the information of each image, then the average is exact.

    Images already in the cache take part with what was measured then, so that an interrupted run goes on as planned.
    """
    values: dict[str, float] = {}
    decoded = ahead(found, lambda one: decode(one, pruner.vision.preprocess, writer.holds), AHEAD * batch_size)
    for batch in batches(decoded, batch_size):
        fresh = [one for one in batch if one.pixels is not None]
        if fresh:
            measured = pruner.information(pruner.encode([one.pixels for one in fresh if one.pixels is not None]))
            values |= {one.source: value for one, value in zip(fresh, measured, strict=True) if value == value}
        values |= {one.source: writer.done[one.source].phi for one in batch if one.media and one.pixels is None}
    counts = dict(zip(values, pruner.counts(list(values.values())), strict=True))
    return counts | {one.source: 1 for one in found if one.source not in counts}


@dataclass(frozen=True)
class Query:
    """One prompt about one cached item; `number` is its place in the output."""

    number: int
    prompt: str
    shard: Shard
    item: Item


@dataclass(frozen=True)
class Reply:
    query: Query
    answer: Answer | None
    ms: float
    error: PruneSIDError | None = None


def answer(language: LanguageHalf, queries: Iterable[Query], how: Generation, batch_size: int) -> Iterator[Reply]:
    """Answer prompts from cached tokens, in batches, in order. A damaged item costs itself alone."""
    size = 1 if how.temperature > 0 else batch_size
    for batch in batches(queries, size):
        began = time.perf_counter()
        read = [_read(query) for query in batch]
        prompts = [
            language.embed(query.prompt, [one])
            for query, one in zip(batch, read, strict=True)
            if isinstance(one, TokenSet)
        ]
        answers = iter(language.generate(prompts, how)) if prompts else iter(())
        ms = (time.perf_counter() - began) * 1000 / len(batch)
        for query, one in zip(batch, read, strict=True):
            if isinstance(one, TokenSet):
                yield Reply(query, next(answers), ms)
            else:
                yield Reply(query, None, ms, one)


def _generate(language: LanguageHalf, prompts: list[Tensor], how: Generation) -> list[Answer]:
    """A batch that does not fit into memory is cut in two."""
    if not prompts:
        return []
    try:
        return language.generate(prompts, how)
    except torch.OutOfMemoryError:
        half = len(prompts) // 2
        if not half:
            raise
        return _generate(language, prompts[:half], how) + _generate(language, prompts[half:], how)


def _read(query: Query) -> TokenSet | PruneSIDError:
    try:
        return next(read_tokens(query.shard, [query.item]))
    except PruneSIDError as error:
        return error
