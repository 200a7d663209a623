"""What became of an input that was not encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from prunesid_cli.errors import PruneSIDError

if TYPE_CHECKING:
    from prunesid_cli.tokencache import IndexEntry, Stamp
    from prunesid_cli.types import Provenance


@dataclass(frozen=True)
class CachedInput:
    """An input that is in the cache already. `new_stamp` is set if its file has another stamp than the cache knows."""

    source: str
    entry: IndexEntry
    new_stamp: Stamp | None = None
    num_images: ClassVar[int] = 0
    nbytes: ClassVar[int] = 0


@dataclass(frozen=True)
class CopiedInput:
    """An input with the contents of another one, which is in the cache, or will be before this one is written.

    Attributes:
        provenance: Where it came from.
        stamp: Size and modification time of its file; None if they may not be relied on.
    """

    provenance: Provenance
    stamp: Stamp | None
    num_images: ClassVar[int] = 0
    nbytes: ClassVar[int] = 0

    @property
    def source(self) -> str:
        return self.provenance.source


@dataclass(frozen=True)
class FailedInput:
    """An input that could not be read, or not be encoded."""

    source: str
    error: PruneSIDError
    num_images: ClassVar[int] = 0
    nbytes: ClassVar[int] = 0
