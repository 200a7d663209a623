"""What C libraries write to stderr: caught, so that it is evidence and not noise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from threading import Lock

STDERR = 2
MAX_BYTES = 1 << 16
"""How much of what was written is read again. Decoders repeat one line for each row of a damaged picture."""
_lock = Lock()


@contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Catch what is written to file descriptor 2 within the block. One block at a time: the descriptor exists once.

    The command line writes to a copy of the descriptor (`cli.terminal`), so its messages are not caught. In another
    program, what its other threads write to the descriptor meanwhile is caught, too.

    Yields:
        A list that holds the lines once the block has ended.
    """
    lines = list[str]()
    with _lock, TemporaryFile() as file:
        try:
            original = os.dup(STDERR)
        except OSError:  # it is closed
            original = None
        os.dup2(file.fileno(), STDERR)
        try:
            yield lines
        finally:
            if original is None:
                os.close(STDERR)
            else:
                os.dup2(original, STDERR)
                os.close(original)
            file.seek(0)
            lines += file.read(MAX_BYTES).decode(errors="replace").splitlines()
