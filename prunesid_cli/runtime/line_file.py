"""A file of lines that grows while a run goes on, and from which a later run continues. One run at a time writes it."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import regex

from prunesid_cli.errors import PruneSIDError, UsageError
from prunesid_cli.runtime.output_file import is_stream, open_stream

CUT_VALUE = r"t|tr|tru|f|fa|fal|fals|n|nu|nul|-?[\d.eE+-]{0,24}"
"""What is left of a line from where it is no JSON any more, if it ends in a word or a number: perhaps nothing."""
OTHER_FILE_HINT = "name another --out, or move the file away"


@dataclass
class LineFile:
    """A file of lines that is locked for this run; see `open_lines`.

    Attributes:
        path: The file.
        pattern: Regular expression of our lines.
        stream: Descriptor of a stream, to which lines only go out; None for a regular file.
        end: Bytes of the complete lines, once they were read.
        lacks_line_end: Whether the last of them has no line end: all of it was written but that.
    """

    path: Path
    pattern: bytes
    stream: int | None = None
    end: int = 0
    lacks_line_end: bool = False

    def read(self) -> Iterator[bytes]:
        """The complete lines, and at the end any text that is not the beginning of a line of ours.

        The beginning of a line of ours is what an interrupted run left: it is ignored, and removed by `append`.
        """
        self.end, self.lacks_line_end = 0, False
        if self.stream is not None or not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") and self._is_cut_short(line):
                    return
                self.end += len(line)
                self.lacks_line_end = not line.endswith(b"\n")
                yield line

    def _is_cut_short(self, line: bytes) -> bool:
        """Whether a text is the beginning of a line of ours: of JSON that could go on where the text ends."""
        if b"\r" in line or not regex.fullmatch(self.pattern, line, partial=True):
            return False
        with suppress(RecursionError, ValueError):
            try:
                json.loads(line)
            except json.JSONDecodeError as error:
                is_in_string = error.msg.startswith(("Unterminated string", r"Invalid \uXXXX escape"))
                return is_in_string or bool(regex.fullmatch(CUT_VALUE, error.doc[error.pos :]))
        return False

    def append(self, lines: Sequence[bytes]) -> None:
        """Adds lines and syncs them to the disk. Without any, only checks that the file can be written.

        Raises:
            BrokenPipeError: It is a stream whose reader has closed it.
            PruneSIDError: They could not be written; the file has none of them.
        """
        data = b"".join(lines)
        if data and self.lacks_line_end:
            data = b"\n" + data
        try:
            if self.stream is not None:
                _write(self.stream, data)
                return
            with self.path.open("ab", buffering=0) as file:
                file.truncate(self.end)  # removes an incomplete line of an earlier run
                try:
                    _write(file.fileno(), data)
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(self.end)
                    raise
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self.write_error(error) from error
        self.end += len(data)
        self.lacks_line_end = self.lacks_line_end and not data

    def not_ours(self, number: int) -> UsageError:
        """The error of a line that is not one of ours; `number` is from 1."""
        return UsageError(f"{self.path}, line {number} is not an answer of ours", OTHER_FILE_HINT)

    def write_error(self, error: OSError) -> PruneSIDError:
        """The error of a file that could not be written."""
        problem = f"cannot write to {self.path}: {error.strerror}"
        hint = "free some space: the same command continues from here" if self.stream is None else "name another --out"
        return PruneSIDError(problem, hint)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a disk that becomes full accepts a part before it reports an error
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def open_lines(path: Path, pattern: bytes) -> Iterator[LineFile]:
    """Opens a file of lines for reading and writing, and locks it. It need not exist.

    Args:
        path: The file, or a stream.
        pattern: Regular expression of our lines. What does not begin so is never removed.

    Raises:
        UsageError: The file cannot be written.
        PruneSIDError: Another run writes to it.
    """
    from filelock import FileLock, Timeout

    if is_stream(path):
        try:
            stream = open_stream(path)
        except OSError as error:
            raise UsageError(f"cannot write to {path}: {error.strerror}", "name another --out") from error
        try:
            yield LineFile(path, pattern, stream)
        finally:
            os.close(stream)
        return
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    if not path.parent.is_dir():
        raise UsageError(f"no such folder: {path.parent}", f"make it: mkdir -p {shlex.quote(str(path.parent))}")
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK | os.R_OK)):
        raise UsageError(f"{path} is not a file that can be written", "name another --out")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise PruneSIDError(f"another run is writing to {path}", "wait for it, or name another --out") from error
    except OSError as error:
        raise UsageError(f"cannot write to {path.parent}: {error.strerror}", "name another --out") from error
    is_new = not path.exists()
    try:
        yield LineFile(path, pattern)
    finally:
        if is_new and path.exists() and not path.stat().st_size:  # a failed run leaves no empty file
            path.unlink()
        lock.release()
