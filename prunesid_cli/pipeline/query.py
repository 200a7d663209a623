"""Prompts about cached items, and the replies to them. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunesid_cli.errors import PruneSIDError
    from prunesid_cli.tokencache import Item, Shard
    from prunesid_cli.types import Answer


@dataclass(frozen=True)
class Query:
    """One prompt about one cached item.

    Attributes:
        number: Its position in the output.
        prompt: The text.
        shard: The shard of the item.
        item: The item.
        fields: What the prompt gives to the answer: a prompt with other fields is another prompt.
        columns: What the item gives to the answer.
    """

    number: int
    prompt: str
    shard: Shard
    item: Item
    fields: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """The answer to a query, or why there is none; `ms`: its share of the time of its batch, in milliseconds."""

    query: Query
    answer: Answer | None
    ms: float
    error: PruneSIDError | None = None
