"""What can go wrong, as a line that says it and a line that says what to type; and the exit codes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILURE = 1
    USAGE = 2
    PARTIAL = 3
    INTERRUPTED = 130


class PruneSIDError(Exception):
    """A failure that the user can read: `problem` says what is wrong, `hint` what to do about it."""

    exit_code = ExitCode.FAILURE

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class UsageError(PruneSIDError):
    """An option or argument that makes no sense."""

    exit_code = ExitCode.USAGE


class MediaError(PruneSIDError):
    """An image or clip that cannot be read. Costs one item, never a run."""


class CacheError(PruneSIDError):
    """A cache that cannot be read, or does not fit the model."""


class ModelError(PruneSIDError):
    """A model that cannot be found or loaded."""


class UnsupportedModel(ModelError):
    """A model of a kind that has no adapter."""


class OutOfMemory(PruneSIDError):
    """Work that does not fit into a device's memory, where it cannot be cut smaller."""


class NonFiniteError(PruneSIDError):
    """NaN or inf in the features or the saliency of an item. `rows` are the batch rows it was found in."""

    def __init__(self, problem: str, hint: str = "", rows: Sequence[int] = ()) -> None:
        super().__init__(problem, hint)
        self.rows = list(rows)
