"""Finds inputs with the contents of another one, such as copies and renamed files, whose tokens are used again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

from prunesid_cli.errors import rename_source
from prunesid_cli.pipeline.load import LoadedInput
from prunesid_cli.pipeline.results import CopiedInput, FailedInput
from prunesid_cli.tokencache import CacheWriter, Entry

T = TypeVar("T")
NUM_RECENT = 1 << 16
"""Digests that are remembered until the writer knows them. It is at most a few batches behind."""


class RecentDigests(OrderedDict[str, T], Generic[T]):
    """Digest -> value, of the last `NUM_RECENT` inputs."""

    def __setitem__(self, digest: str, value: T) -> None:
        super().__setitem__(digest, value)
        if len(self) > NUM_RECENT:
            self.popitem(last=False)


class CopyFinder:
    """Finds copies among the inputs of a run, in their order."""

    def __init__(self, writer: CacheWriter | None) -> None:
        """`writer`: the cache; None if copies are only found among the inputs."""
        self.writer, self.failed = writer, dict[str, FailedInput]()
        self.recent = RecentDigests[None]()

    def replace_copies(self, batch: Sequence[T]) -> list[T | CopiedInput]:
        """Replace each input with contents that are known by a `CopiedInput`. The others are known from then on."""
        results = list[T | CopiedInput]()
        for item in batch:
            if isinstance(item, LoadedInput | Entry):
                digest = item.provenance.digest
                if digest in self.recent or (self.writer and self.writer.contents.find(digest)):
                    results.append(CopiedInput(item.provenance, item.stamp))
                    continue
                self.recent[digest] = None
            results.append(item)
        return results

    def fail(self, item: LoadedInput, failure: FailedInput) -> None:
        """Note that an input failed after it was known. Its copies that were found before fail as well."""
        self.recent.pop(item.provenance.digest, None)
        self.failed[item.provenance.digest] = failure

    def check(self, copy: CopiedInput) -> CopiedInput | FailedInput:
        """Return a copy, or that it failed as the input that it is a copy of."""
        failure = self.failed.get(copy.provenance.digest)
        if failure is None:
            return copy
        return FailedInput(copy.source, rename_source(failure.error, failure.source, copy.source))
