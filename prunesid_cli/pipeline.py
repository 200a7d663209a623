"""The chains: pictures -> token sets -> answers, and pictures -> cache -> answers. Nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunesid_cli.decoding import Decoded, ahead, batches, decode
from prunesid_cli.errors import MediaError, NonFiniteError, PruneSIDError
from prunesid_cli.families.base import LanguageHalf
from prunesid_cli.listing import Found
from prunesid_cli.media import Media
from prunesid_cli.pruner import Pruner
from prunesid_cli.tokencache import CacheWriter, Entry, Item, Shard, read_tokens
from prunesid_cli.types import Answer, Generation, TokenSet

AHEAD = 2
"""Batches that are decoded while another is encoded."""


def ask(
    pruner: Pruner, language: LanguageHalf, media: Sequence[Media], prompt: str, how: Generation
) -> tuple[Answer, list[TokenSet]]:
    """Answer one prompt about one or several images."""
    with pruner.clock.stage("preprocess"):
        pixels = [pruner.vision.preprocess(item.image) for item in media]
    encoded = pruner.encode(pixels)
    try:
        items = pruner.keep(encoded, pruner.counts(pruner.information(encoded)))
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
        sets = [(query, one) for query, one in zip(batch, read, strict=True) if isinstance(one, TokenSet)]
        answers = iter(_generate(language, [language.embed(query.prompt, [one]) for query, one in sets], how))
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
