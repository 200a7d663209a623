"""A random sample of items that come one at a time, and whose number is not known."""

from __future__ import annotations

from random import Random
from typing import Generic, TypeVar

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Keeps some of the items that are added, each as likely as any other. The same items give the same sample.

    Args:
        size: How many are kept at most.

    Attributes:
        items: The sample.
        count: How many items were added.
    """

    def __init__(self, size: int) -> None:
        self.size, self.random, self.items, self.count = size, Random(0), list[T](), 0

    def add(self, item: T) -> None:
        """Add an item."""
        self.count += 1
        if len(self.items) < self.size:
            self.items.append(item)
        elif (place := self.random.randrange(self.count)) < self.size:
            self.items[place] = item
