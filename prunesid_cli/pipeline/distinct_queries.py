"""Asks each content once: the answer about an item is used for others with the same contents, such as copies.

An engine takes only queries that have no answer yet. The replies to all queries come in their order.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from prunesid_cli.errors import PruneSIDError, rename_source
from prunesid_cli.pipeline.query import Query, Reply
from prunesid_cli.tokencache import Cache
from prunesid_cli.tokencache.content_index import RepeatedDigests
from prunesid_cli.types import Answer

MAX_PASSED = 4096
"""So many queries with known contents are passed over before the engine has to give what it has."""


class ContentReply(NamedTuple):
    """The reply about a content. `source`: the item that was asked about."""

    source: str
    answer: Answer | None
    error: PruneSIDError | None


class DistinctQueries:
    """The queries that an engine answers, as an iterator, and the replies to all of them.

    It may end and go on later: when many queries wait, so that the engine answers what it was given.
    """

    def __init__(self, queries: Iterator[Query], cache: Cache) -> None:
        self.queries, self.is_at_end = queries, False
        self.repeated = RepeatedDigests(cache.index.table)
        self.waiting, self.replies = deque[Query](), dict[int, Reply]()
        self.contents = dict[bytes, ContentReply | None]()
        self.held_back: Query | None = None
        self.num_passed = 0

    def __iter__(self) -> Iterator[Query]:
        return self

    def __next__(self) -> Query:
        """The next query about a content that was not asked about. Ends if it would pass over too many others."""
        while self.num_passed < MAX_PASSED:
            query = self._take()
            self.waiting.append(query)
            key = self._key(query)
            if key is None or key not in self.contents:
                if key is not None:
                    self.contents[key] = None
                return query
            self.num_passed += 1
        raise StopIteration

    def _take(self) -> Query:
        query, self.held_back = self.held_back, None
        if query is None:
            try:
                query = next(self.queries)
            except StopIteration:
                self.is_at_end = True
                raise
        return query

    def _key(self, query: Query) -> bytes | None:
        """Equal for queries with the same answer; None if there are no others."""
        item = query.item
        if not self.repeated.has(item.digest):
            return None
        # Two items with one digest may keep other tokens, if their budgets depended on other items.
        return hashlib.blake2b(f"{item.digest} {item.check} {query.prompt}".encode(), digest_size=16).digest()

    def add(self, reply: Reply) -> None:
        """Note what the engine replied."""
        self.replies[reply.query.number] = reply
        key = self._key(reply.query)
        if key is not None:
            self.contents[key] = ContentReply(reply.query.item.source, reply.answer, reply.error)

    def ready(self) -> list[Reply]:
        """The replies that are next."""
        replies, self.num_passed = list[Reply](), 0
        while self.waiting:
            query = self.waiting[0]
            reply = self.replies.pop(query.number, None) or self._known_reply(query)
            if reply is None:
                break
            replies.append(reply)
            self.waiting.popleft()
        return replies

    def _known_reply(self, query: Query) -> Reply | None:
        """The reply to a query whose content was asked about before; None if there is none yet."""
        key = self._key(query)
        known = self.contents.get(key) if key is not None else None
        if known is None:
            return None
        error = known.error and rename_source(known.error, known.source, query.item.source)
        return Reply(query, known.answer, 0.0, error)

    def known_replies(self) -> list[Reply]:
        """The next replies that need no engine, up to `MAX_PASSED`. It has answered all that it was given."""
        replies = list[Reply]()
        while len(replies) < MAX_PASSED and not self.held_back:
            try:
                query = self._take()
            except StopIteration:
                break
            reply = self._known_reply(query)
            if reply is None:
                self.held_back = query
            else:
                replies.append(reply)
        return replies


def answer_distinct(
    answer: Callable[[Iterator[Query]], Iterator[list[Reply]]], queries: Iterator[Query], cache: Cache
) -> Iterator[list[Reply]]:
    """Answers queries about the items of a cache, and asks each content once.

    Args:
        answer: The engine. It gives replies in the order of its queries.
        queries: All queries, in order.
        cache: What they are about.

    Yields:
        Replies, in the order of the queries.
    """
    distinct = DistinctQueries(queries, cache)
    while not distinct.is_at_end:
        for replies in answer(distinct):
            for reply in replies:
                distinct.add(reply)
            yield distinct.ready()
        yield distinct.ready()
        if distinct.waiting:  # the engine was asked to stop
            return
        while replies := distinct.known_replies():
            yield replies
