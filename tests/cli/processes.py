"""The command in a process of its own, for tests of signals, pipes and terminals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TIMEOUT_SECONDS = 120


def command_line(*args: object) -> list[str]:
    return [sys.executable, "-m", "prunesid_cli", *map(str, args)]


def prunesid(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command with stdout and stderr in pipes; `options` are those of subprocess.run."""
    return subprocess.run(command_line(*args), capture_output=True, text=True, timeout=TIMEOUT_SECONDS, **options)


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `prunesid` is the command of this checkout."""
    line = f'set -o pipefail; prunesid() {{ {sys.executable} -m prunesid_cli "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60)


def heed_interrupts() -> None:
    """Undo that a shell makes its background jobs, and their children, ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(
    *args: object, stdin: int | None = None, prepare: Callable[[], None] = heed_interrupts
) -> Iterator[subprocess.Popen[str]]:
    """The command with --json while it runs; it is killed at the end of the block if it still runs.

    Args:
        args: the command line, without --json.
        stdin: file descriptor of its stdin; /dev/null by default.
        prepare: called in the new process before the command starts.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": stdin or subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command_line(*args, "--json"), **pipes, preexec_fn=prepare) as process:
        try:
            yield process
        finally:
            process.kill()


def read_sources(process: subprocess.Popen[str], count: int) -> list[str]:
    """The sources in the next `count` records on the process's stdout."""
    assert process.stdout
    return [json.loads(process.stdout.readline())["source"] for _ in range(count)]


def stdout_on_terminal(*args: object) -> str:
    """What the command writes to stdout when that is a terminal, with the line ends of a file."""
    import pty

    leader, follower = pty.openpty()
    with subprocess.Popen(command_line(*args), stdout=follower, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL):
        os.close(follower)
        shown = _read_terminal(leader)
    return shown.replace("\r\n", "\n")


def stderr_on_terminal(*args: object) -> tuple[int, str, str]:
    """Run the command with stdout in a pipe and stderr on a terminal -> exit code, stdout, stderr."""
    import pty

    leader, follower = pty.openpty()
    with subprocess.Popen(command_line(*args), stdout=subprocess.PIPE, stderr=follower, text=True) as process:
        os.close(follower)
        shown = _read_terminal(leader)
        out = process.stdout.read() if process.stdout else ""
    return process.returncode, out, shown


def _read_terminal(leader: int) -> str:
    parts = list[bytes]()
    try:
        while part := os.read(leader, 65536):
            parts.append(part)
    except OSError:  # Linux raises EIO when the last process has closed its side
        pass
    os.close(leader)
    return b"".join(parts).decode()
