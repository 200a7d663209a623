"""From a cache and prompts to answers: in batches of prompts of like length, what several of them begin with read once,
in the order of the queries."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from prunesid_cli.errors import CacheError, PruneSIDError
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.models.shared.shared_prefix import PrefixCache, prompt_prefix
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom
from prunesid_cli.runtime.batch_size import batched
from prunesid_cli.tokencache import Item, Shard, read_tokens
from prunesid_cli.types import Answer, Generation, Prompt, TokenSet

WINDOW = 16
"""Batches among which prompts are sorted."""

WORTH = 0.25
"""The share of a batch's tokens that must be saved, or what prompts begin with is not read apart from the rest."""


Begins = tuple[str, tuple[int, ...]]


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


@dataclass(frozen=True)
class Asked:
    """A query, and the ids of its whole prompt with one placeholder for each run of the item; `opening`: how many of
    them there are up to the last of those."""

    query: Query
    ids: tuple[int, ...]
    opening: int

    @property
    def source(self) -> str:
        return self.query.item.source

    @property
    def begins(self) -> Begins:
        """The same for prompts in which all up to the end of the item is."""
        return self.source, self.ids[: self.opening]

    @property
    def length(self) -> int:
        """In tokens as the model reads them."""
        item = self.query.item
        return len(self.ids) - len(item.layout.runs) + item.kept


def answer(
    language: LanguageHalf, queries: Iterable[Query], generation: Generation, batch_size: int
) -> Iterator[list[Reply]]:
    """Answer prompts from cached tokens; queries about one item come one after the other.

    Yields after each batch what is next in the order of the queries. An item that cannot be answered costs itself
    alone. Sampling asks one prompt at a time, and each as if it were the only one.
    """
    work = BatchAnswerer(
        language,
        generation,
        1 if generation.temperature > 0 else batch_size,
        language.can_share_prefix and generation.temperature == 0,
    )
    for window in batched(queries, WINDOW * work.size):
        made, numbers = dict[int, Reply](), [query.number for query in reversed(window)]
        for group in together([work.tokenize(query) for query in window], work.size, work.segment_budgets):
            made |= {reply.query.number: reply for reply in work.replies(group)}
            ready = list[Reply]()
            while numbers and numbers[-1] in made:
                ready.append(made.pop(numbers.pop()))
            yield ready


def together(asked: Sequence[Asked], size: int, segment_budgets: bool) -> list[list[Asked]]:
    """Queries that are worked on together: those of like length, in the order of the first of each group.

    shares: those that begin alike stay together, and then may be more than `size`.
    """
    own = list(_by_beginning(asked).values()) if segment_budgets else [[one] for one in asked]
    groups = list[list[Asked]]()
    for some in sorted(own, key=lambda some: max(one.length for one in some)):
        if not groups or len(groups[-1]) + len(some) > size:
            groups.append([])
        groups[-1] += sorted(some, key=lambda one: one.length)
    return sorted(groups, key=lambda group: min(one.query.number for one in group))


def _by_beginning(asked: Iterable[Asked]) -> dict[Begins, list[Asked]]:
    found = defaultdict[Begins, list[Asked]](list)
    for one in asked:
        found[one.begins].append(one)
    return found


def alike(asked: Sequence[Asked]) -> int:
    """How many tokens prompts begin with alike: all up to the end of the item, and what else is the same. Fewer than
    any of them has, as something must be left to read; 0, where nothing would be."""
    item, opening = asked[0].query.item, asked[0].opening
    shortest = min(len(one.ids) for one in asked)
    columns = zip(*(one.ids[: shortest - 1] for one in asked), strict=True)
    count = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return count - len(item.layout.runs) + item.kept if count >= opening else 0


@dataclass(frozen=True)
class BatchAnswerer:
    language: LanguageHalf
    generation: Generation
    size: int
    segment_budgets: bool

    def tokenize(self, query: Query) -> Asked:
        ids = tuple(self.language.tokenize(query.prompt, [query.item.layout]).tolist())
        known = self.language.placeholder_ids
        return Asked(query, ids, max((at for at, one in enumerate(ids, 1) if one in known), default=0))

    def replies(self, group: Sequence[Asked]) -> list[Reply]:
        began = time.perf_counter()
        read = {one.source: _read(one.query) for one in {one.source: one for one in group}.values()}
        tokens = {source: one for source, one in read.items() if isinstance(one, TokenSet)}
        answers: dict[int, Answer | PruneSIDError] = {
            one.query.number: error for one in group if isinstance(error := read[one.source], PruneSIDError)
        }
        readable = [one for one in group if one.source in tokens]
        prefix_caches = self.prefix_caches(readable, tokens) if self.segment_budgets else {}
        for batch in batched(readable, self.size):
            said = run_in_halves_on_oom(lambda some: self.answers(some, tokens, prefix_caches), batch, _too_long)
            answers |= {one.query.number: found for one, found in zip(batch, said, strict=True)}
        ms = (time.perf_counter() - began) * 1000 / len(group)
        return [_reply(one.query, answers[one.query.number], ms) for one in group]

    def prefix_caches(self, group: Sequence[Asked], tokens: Mapping[str, TokenSet]) -> dict[Begins, PrefixCache]:
        """What prompts begin with alike, read once; nothing, where that is not worth it."""
        own = list(_by_beginning(group).values())
        lengths = [alike(some) for some in own]
        saved = sum(length * (len(some) - 1) for length, some in zip(lengths, own, strict=True))
        if not all(lengths) or saved <= WORTH * sum(one.length for one in group):
            return {}

        def read(some: Sequence[tuple[Asked, int]]) -> list[PrefixCache | None]:
            heads = [prompt_prefix(self.embedded(one, tokens), length) for one, length in some]
            return list(self.language.read_prefixes(heads))

        firsts = [some[0] for some in own]
        found = run_in_halves_on_oom(read, list(zip(firsts, lengths, strict=True)), lambda one: None)
        return {first.begins: one for first, one in zip(firsts, found, strict=True) if one}

    def embedded(self, asked: Asked, tokens: Mapping[str, TokenSet]) -> Prompt:
        return self.language.embed(asked.query.prompt, [tokens[asked.source]])

    def answers(
        self, asked: Sequence[Asked], tokens: Mapping[str, TokenSet], prefix_caches: Mapping[Begins, PrefixCache]
    ) -> list[Answer | PruneSIDError]:
        prompts = [self.embedded(one, tokens) for one in asked]
        known = [prefix_caches[one.begins] for one in asked if one.begins in prefix_caches]
        return list(self.language.generate(prompts, self.generation, known if len(known) == len(asked) else ()))


def _reply(query: Query, found: Answer | PruneSIDError, ms: float) -> Reply:
    return Reply(query, None, ms, found) if isinstance(found, PruneSIDError) else Reply(query, found, ms)


def _too_long(asked: Asked) -> PruneSIDError:
    return CacheError(f"{asked.source}: not enough memory to answer one prompt", "try --device cpu")


def _read(query: Query) -> TokenSet | PruneSIDError:
    try:
        return next(read_tokens(query.shard, [query.item]))
    except PruneSIDError as error:
        return error
