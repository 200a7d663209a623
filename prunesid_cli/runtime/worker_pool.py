"""Worker processes, in which a call that crashes or hangs ends its own process alone.

One process, the server, imports what the work needs and prepares it once. Workers are forked from it, which takes
milliseconds, so a worker that ended is replaced at once. (To fork this process is not safe, as it has threads. The
server has none.) Each worker has a socket of its own: no lock or semaphore is shared, so none can be left locked.
Results come by that socket, and their arrays by memory that all processes share.

The server leads a session of its own, so a terminal's signals do not reach it. Once this process has ended, however it
did, the server kills the session, and nothing is left behind.

multiprocessing and libraries that build on it are not used: their workers import the script of the user again, and
modules of the working folder; and their processes share locks, which a worker that is killed can leave locked.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

from prunesid_cli.errors import UnexpectedError
from prunesid_cli.runtime.messages import receive, send
from prunesid_cli.runtime.shared_buffer import SharedBuffer, needed_bytes

BUFFER_BYTES = 4 << 30
"""Size of the shared memory. Only what was written to takes memory."""
FIRST_REGION_BYTES = 1 << 20
"""Room for arrays of a result, until the first one shows how much is needed."""
FORK, REQUEST_BYTES = b"fork", 32
MALLOC_SETTINGS = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
"""Variables of glibc: workers keep up to 128 MiB of freed memory. By default it goes back to the system after each
picture, and getting it again takes a quarter of the time of a picture of 1280x960."""
SERVER_HINT = "try it again, or without worker processes: --workers 0"

# The interpreter starts isolated, so that no file in the working folder is imported as a module.
SERVER_CODE = (
    "import sys; sys.path[:] = sys.argv.pop(1).split(chr(10)); "
    "from prunesid_cli.runtime.worker_server import main; main()"
)


class WorkerEnded(Exception):
    """The worker ended before it had done a call.

    Attributes:
        exit_code: Its exit code, or minus the signal that ended it.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def describe_exit(exit_code: int) -> str:
    """What ended a process: the name of a signal, or the exit code."""
    return signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"


@dataclass(frozen=True)
class Worker:
    """A worker process, from outside."""

    pid: int
    connection: socket.socket


def working_folder() -> str:
    """The working folder of this process; the root if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return os.sep


def is_supported() -> bool:
    """Whether this system has what workers need."""
    return hasattr(os, "fork") and hasattr(socket, "AF_UNIX")


class WorkerPool:
    """Calls a function in worker processes. There are as many workers as calls at the same time. Thread-safe.

    Args:
        make: "module:function". The server calls it once with `setup`; it returns the function that workers call.
        setup: Its argument, which is pickled.

    Raises:
        OSError: The server cannot be started.
    """

    def __init__(self, make: str, setup: Any = None) -> None:
        if not is_supported():
            raise OSError("this system cannot fork processes")
        self._buffer = SharedBuffer(BUFFER_BYTES)
        self._largest_bytes = 0
        self._idle = deque[Worker]()
        self._lock = Lock()
        self._failure: Exception | None = None
        self._is_ready = False
        self._control, theirs = socket.socketpair()
        with theirs:
            inherited = (theirs.fileno(), self._buffer.file)
            code = [sys.executable, "-I", "-c", SERVER_CODE, "\n".join(sys.path), *map(str, inherited)]
            self._server = subprocess.Popen(
                [*code, str(BUFFER_BYTES)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=inherited,
                start_new_session=True,
                env=MALLOC_SETTINGS | os.environ,
            )
        os.close(self._buffer.file)  # the memory stays
        send(self._control, (make, setup))

    @property
    def pid(self) -> int:
        """The server's process, which leads the session of all workers."""
        return self._server.pid

    def call(self, argument: Any, folder: str = "") -> Any:
        """Call the function in a worker, and wait for its result.

        Args:
            argument: Its argument, which is pickled.
            folder: The worker's working folder; empty for that of this process.

        Raises:
            WorkerEnded: The call ended the worker: it crashed, or took too long.
            PruneSIDError: What the function raises, or preparing it in the server; other errors as `UnexpectedError`.
        """
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = self._start_worker()
        region = self._buffer.allocate(self._largest_bytes or FIRST_REGION_BYTES)
        try:
            send(worker.connection, (argument, region, folder or working_folder()))
            is_error, pickled, lengths, arrays = receive(worker.connection)
        except (EOFError, OSError) as error:
            if region:
                self._buffer.release(region)
            worker.connection.close()
            raise WorkerEnded(self._request(b"%d" % worker.pid)) from error
        self._idle.append(worker)
        if region and arrays is None:
            arrays = self._buffer.view(region, lengths)
        elif region:
            self._buffer.release(region)
        self._largest_bytes = max(self._largest_bytes, needed_bytes(lengths))
        value = pickle.loads(pickled, buffers=arrays)
        if is_error:
            raise value
        return value

    def _start_worker(self) -> Worker:
        ours, theirs = socket.socketpair()
        with theirs:
            return Worker(self._request(FORK, [theirs.fileno()]), ours)

    def _request(self, request: bytes, handles: Sequence[int] = ()) -> int:
        """Ask the server to fork a worker, which gets the handle; or, with its pid, how a worker ended."""
        with self._lock:
            if not self._is_ready:
                self._failure = self._failure or self._wait_for_server()
                self._is_ready = True
            if self._failure:
                raise self._failure
            try:
                if request == FORK:
                    socket.send_fds(self._control, [request], handles)
                else:
                    self._control.sendall(request)
                answer: int = receive(self._control)
                return answer
            except (EOFError, OSError) as error:
                self._failure = UnexpectedError("the process that starts workers has ended", SERVER_HINT)
                raise self._failure from error

    def _wait_for_server(self) -> Exception | None:
        """Wait until the server has prepared the work; returns what kept it from that."""
        try:
            failure: Exception | None = receive(self._control)
        except (EOFError, OSError):
            reason = describe_exit(self._server.wait())
            failure = UnexpectedError(f"worker processes cannot be started ({reason})", SERVER_HINT)
        return failure

    def close(self) -> None:
        """End the server and all workers, also those that are in the middle of a call."""
        with suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)  # a thread may be waiting for an answer
        with suppress(ProcessLookupError):
            os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        self._control.close()
