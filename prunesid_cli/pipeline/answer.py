"""The main flow of `answer`: cached tokens and prompts -> answers.

Prompts of similar length are answered together. What several prompts about an item begin with is read by the language
model once. Answers come in the order of the queries.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, takewhile

from prunesid_cli.errors import CacheError, PruneSIDError, misfit_error, name_item
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.models.shared.schema import require_json
from prunesid_cli.models.shared.shared_prefix import PrefixCache, prompt_prefix
from prunesid_cli.pipeline.query import Query, Reply
from prunesid_cli.runtime.batch_size import BatchSizeTuner, batched
from prunesid_cli.runtime.out_of_memory import run_in_halves_on_oom
from prunesid_cli.tokencache import read_tokens
from prunesid_cli.types import Answer, Generation, Prompt, TokenSet

SORTED_BATCHES = 16
"""How many batches of prompts are sorted by length together."""
MIN_SHARED_TOKENS = 0.25
"""Share of a batch's tokens that must be saved for common beginnings to be read apart from the rest."""

PrefixKey = tuple[str, tuple[int, ...]]
"""Source of an item, and the ids of a prompt up to the end of the item."""


@dataclass(frozen=True)
class TokenizedQuery:
    """A query and the ids of its whole prompt.

    Attributes:
        query: The query.
        ids: Ids, with one placeholder for each run of the item's tokens.
        prefix_length: Number of ids up to the last placeholder.
    """

    query: Query
    ids: tuple[int, ...]
    prefix_length: int

    @property
    def source(self) -> str:
        return self.query.item.source

    @property
    def prefix_key(self) -> PrefixKey:
        """Equal for prompts that are the same up to the end of the item."""
        return self.source, self.ids[: self.prefix_length]

    @property
    def length(self) -> int:
        """Length of the prompt in tokens, kept visual tokens included."""
        item = self.query.item
        return len(self.ids) - len(item.layout.runs) + item.kept


def answer(
    language: LanguageHalf, queries: Iterable[Query], generation: Generation, batch_sizes: BatchSizeTuner
) -> Iterator[list[Reply]]:
    """Answers prompts from cached tokens.

    Args:
        language: The language half of the model.
        queries: Prompts about items. Queries about one item follow each other.
        generation: How to decode. With a temperature, prompts are answered one by one, each as if it were the only one.
        batch_sizes: How many prompts are answered together. Fewer are, if their keys and values take too much memory.

    Yields:
        After each batch, the replies that are next in the order of the queries. An item that cannot be read has an
        error in its replies.
    """
    samples = generation.temperature > 0
    answerer = BatchAnswerer(
        language=language,
        generation=generation,
        batch_sizes=BatchSizeTuner.fixed(1) if samples else batch_sizes,
        max_tokens=language.max_batch_tokens(),
        shares_prefixes=language.can_share_prefix and not samples,
    )
    language.tokenize("?", [])  # a model without a chat template fails at once, and not for each item
    source = iter(queries)
    while window := list(islice(source, SORTED_BATCHES * answerer.batch_sizes.size)):
        finished, waiting = dict[int, Reply](), [query.number for query in reversed(window)]
        tokenized, refused = list[TokenizedQuery](), list[Reply]()
        for query in window:
            try:
                tokenized.append(answerer.tokenize(query))
            except PruneSIDError as error:
                refused.append(Reply(query, None, 0.0, name_item(query.item.source, error)))
        groups = group_by_length(
            tokenized,
            answerer.batch_sizes.size,
            keep_prefixes_together=answerer.shares_prefixes,
            max_tokens=answerer.max_tokens,
            new_tokens=generation.max_new_tokens,
        )
        for replies in chain([refused] if refused else [], map(answerer.answer_group, groups)):
            finished |= {reply.query.number: reply for reply in replies}
            ready = list[Reply]()
            while waiting and waiting[-1] in finished:
                ready.append(finished.pop(waiting.pop()))
            yield ready


def group_by_length(
    queries: Sequence[TokenizedQuery],
    batch_size: int,
    keep_prefixes_together: bool,
    max_tokens: int | None = None,
    new_tokens: int = 0,
) -> list[list[TokenizedQuery]]:
    """Groups queries of similar length.

    Args:
        queries: The queries.
        batch_size: Size of a group.
        keep_prefixes_together: Whether queries with a common beginning stay together. Groups may then be larger.
        max_tokens: Largest number of tokens of a group, padding and answers included; None: any number.
        new_tokens: Longest answer in tokens.

    Returns:
        Groups, in the order of the first query of each.
    """
    units = list(group_by_prefix(queries).values()) if keep_prefixes_together else [[query] for query in queries]
    groups = list[list[TokenizedQuery]]()

    def longest(unit: Sequence[TokenizedQuery]) -> int:
        return max(query.length for query in unit)

    for unit in sorted(units, key=longest):
        size = len(groups[-1]) + len(unit) if groups else batch_size + 1
        if size > batch_size or (max_tokens is not None and size * (longest(unit) + new_tokens) > max_tokens):
            groups.append([])
        groups[-1] += sorted(unit, key=lambda query: query.length)
    return sorted(groups, key=lambda group: min(query.query.number for query in group))


def group_by_prefix(queries: Iterable[TokenizedQuery]) -> dict[PrefixKey, list[TokenizedQuery]]:
    """Queries that begin with the same ids up to the end of the same item."""
    groups = defaultdict[PrefixKey, list[TokenizedQuery]](list)
    for query in queries:
        groups[query.prefix_key].append(query)
    return groups


def shared_prefix_length(queries: Sequence[TokenizedQuery]) -> int:
    """How many tokens prompts about one item have in common at their beginning.

    At least one token of each prompt is left to read.

    Returns:
        The number of tokens, visual ones included; 0 if the common part ends before the item does.
    """
    item, prefix_length = queries[0].query.item, queries[0].prefix_length
    shortest = min(len(query.ids) for query in queries)
    columns = zip(*(query.ids[: shortest - 1] for query in queries), strict=True)
    count = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
    return count - len(item.layout.runs) + item.kept if count >= prefix_length else 0


@dataclass(frozen=True)
class BatchAnswerer:
    """Answers groups of queries.

    Attributes:
        language: The language half of the model.
        generation: How to decode.
        batch_sizes: How many prompts are answered together.
        max_tokens: How many tokens they may have together.
        shares_prefixes: Whether common beginnings of prompts are read once.
    """

    language: LanguageHalf
    generation: Generation
    batch_sizes: BatchSizeTuner
    max_tokens: int | None
    shares_prefixes: bool

    def tokenize(self, query: Query) -> TokenizedQuery:
        """Raises `PruneSIDError` if the text of the item's layout is not one of this model."""
        ids = tuple(self.language.tokenize(query.prompt, [query.item.layout]).tolist())
        ends = [end for end, token in enumerate(ids, 1) if token in self.language.placeholder_ids]
        if len(ends) != len(query.item.layout.runs):
            raise misfit_error()
        return TokenizedQuery(query, ids, prefix_length=ends[-1])

    def answer_group(self, group: Sequence[TokenizedQuery]) -> list[Reply]:
        """Reads the items of a group from the cache, and answers its prompts."""
        start = time.perf_counter()
        tokens, errors = dict[str, TokenSet](), dict[str, PruneSIDError]()
        for source, first in {query.source: query.query for query in group}.items():
            try:
                tokens[source] = next(read_tokens(first.shard, [first.item]))
                self.language.check_item(tokens[source])
            except PruneSIDError as error:
                errors[source] = name_item(source, error)
        readable = [query for query in group if query.source not in errors]
        prefix_caches = self._read_prefixes(readable, tokens) if self.shares_prefixes else {}
        results = dict[int, Answer | PruneSIDError]()
        for batch in batched(readable, self.batch_sizes.size):
            answers = run_in_halves_on_oom(
                lambda part: self._generate(part, tokens, prefix_caches),
                batch,
                lambda query: CacheError(f"{query.source}: not enough memory to answer one prompt", "try --device cpu"),
                lambda batch=batch: self.batch_sizes.shrink(len(batch)),  # type: ignore[misc]
            )
            for query, result in zip(batch, answers, strict=True):
                try:
                    found = result if isinstance(result, PruneSIDError) else require_json(result, self.generation)
                except PruneSIDError as error:
                    found = name_item(query.source, error)
                results[query.query.number] = found
        seconds = time.perf_counter() - start
        self.batch_sizes.record(len(group), seconds)
        ms = seconds * 1000 / len(group)
        replies = []
        for query in group:
            result = errors.get(query.source) or results[query.query.number]
            if isinstance(result, PruneSIDError):
                replies.append(Reply(query.query, answer=None, ms=ms, error=result))
            else:
                replies.append(Reply(query.query, result, ms))
        return replies

    def _read_prefixes(
        self, group: Sequence[TokenizedQuery], tokens: Mapping[str, TokenSet]
    ) -> dict[PrefixKey, PrefixCache]:
        """Reads common beginnings once. Nothing, if that saves too little, or if the group has others."""
        units = list(group_by_prefix(group).values())
        lengths = [shared_prefix_length(unit) for unit in units]
        saved = sum(length * (len(unit) - 1) for length, unit in zip(lengths, units, strict=True))
        if not all(lengths) or saved <= MIN_SHARED_TOKENS * sum(query.length for query in group):
            return {}

        def read(part: Sequence[tuple[TokenizedQuery, int]]) -> list[PrefixCache | None]:
            prefixes = [prompt_prefix(self._embed(query, tokens), length) for query, length in part]
            return list(self.language.read_prefixes(prefixes))

        first_queries = [unit[0] for unit in units]
        caches = run_in_halves_on_oom(read, list(zip(first_queries, lengths, strict=True)), lambda too_large: None)
        return {query.prefix_key: cache for query, cache in zip(first_queries, caches, strict=True) if cache}

    def _generate(
        self,
        batch: Sequence[TokenizedQuery],
        tokens: Mapping[str, TokenSet],
        prefix_caches: Mapping[PrefixKey, PrefixCache],
    ) -> list[Answer | PruneSIDError]:
        prompts = [self._embed(query, tokens) for query in batch]
        caches = [prefix_caches[query.prefix_key] for query in batch if query.prefix_key in prefix_caches]
        return list(self.language.generate(prompts, self.generation, caches if len(caches) == len(batch) else ()))

    def _embed(self, query: TokenizedQuery, tokens: Mapping[str, TokenSet]) -> Prompt:
        return self.language.embed(query.query.prompt, [tokens[query.source]])
