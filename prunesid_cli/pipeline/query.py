"""Prompts about cached items, and the replies to them. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prunesid_cli.errors import PruneSIDError
    from prunesid_cli.tokencache import Item, Shard
    from prunesid_cli.types import Answer


@dataclass(frozen=True)
class Query:
    """One prompt about one cached item. `number` is its position in the output."""

    number: int
    prompt: str
    shard: Shard
    item: Item


@dataclass(frozen=True)
class Reply:
    """The answer to a query, or why there is none; `ms`: its share of the time of its batch, in milliseconds."""

    query: Query
    answer: Answer | None
    ms: float
    error: PruneSIDError | None = None
