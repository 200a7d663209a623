"""Errors that users can read: one line that says what is wrong, one hint that says what to do; and the exit codes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from traceback import format_exception
from typing import Any


class ExitCode(IntEnum):
    """Exit codes. PARTIAL: the command finished, but some inputs failed or some items are lost."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    PARTIAL = 3
    INTERRUPTED = 130


class PruneSIDError(Exception):
    """A failure that a user can understand.

    Attributes:
        problem: What is wrong.
        hint: What to do about it; may be empty.
    """

    exit_code = ExitCode.FAILURE

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled, an error keeps its cause as text."""
        cause = self.__cause__
        text = "".join(format_exception(type(cause), cause, cause.__traceback__)) if cause else ""
        return _rebuild, (type(self), self.args, self.__dict__, text)


class RemoteCause(Exception):
    """The cause of an error in another process. Its text is a traceback."""


def _rebuild(error_class: Any, args: tuple[Any, ...], state: dict[str, Any], cause: str) -> PruneSIDError:
    error: PruneSIDError = error_class(*args)
    error.__dict__ |= state
    error.__cause__ = RemoteCause(f"\n{cause}") if cause else None
    return error


class UsageError(PruneSIDError):
    """An option or argument makes no sense."""

    exit_code = ExitCode.USAGE


class MediaError(PruneSIDError):
    """An image or clip cannot be read. A run continues with the others."""


class CacheError(PruneSIDError):
    """A cache cannot be read or written, or belongs to another model."""


class ModelError(PruneSIDError):
    """A model cannot be found or loaded."""


class UnsupportedModel(ModelError):
    """No family in `models.FAMILIES` supports the model."""


class UnexpectedError(PruneSIDError):
    """An error that only its traceback explains. In its hint, the command line puts the command for `--debug`."""


class OutOfMemory(PruneSIDError):
    """Work does not fit into a device's memory, and cannot be split further."""


class NonFiniteError(PruneSIDError):
    """Features or saliency have NaN or infinity. `rows` are the rows of the batch where they were found."""

    def __init__(self, problem: str, hint: str = "", rows: Sequence[int] = ()) -> None:
        super().__init__(problem, hint)
        self.rows = list(rows)


def misfit_error() -> CacheError:
    """The error of a cached item that is not of the model that is to read it."""
    return CacheError("the tokens are not those of this model", "compress again, to another --out")


def name_item(source: str, error: PruneSIDError) -> CacheError:
    """The error of one cached item, which names it."""
    problem = error.problem if source in error.problem else f"{source}: {error.problem}"
    return CacheError(problem, error.hint)


def rename_source(error: PruneSIDError, old: str, new: str) -> PruneSIDError:
    """The error of an input as the error of another one with the same contents."""
    return PruneSIDError(error.problem.replace(old, new, 1), error.hint)


def non_finite_error(source: str) -> NonFiniteError:
    """The error of an input whose visual tokens have NaN or infinity."""
    return NonFiniteError(f"{source}: the vision tower gives NaN or infinity", hint="try --dtype fp32")
