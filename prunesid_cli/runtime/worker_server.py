"""The process from which workers are forked, and what a worker does; see `worker_pool`."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from prunesid_cli.errors import PruneSIDError, UnexpectedError
from prunesid_cli.runtime.messages import receive, send
from prunesid_cli.runtime.shared_buffer import SharedBuffer
from prunesid_cli.runtime.worker_pool import FORK, REQUEST_BYTES
from prunesid_cli.text import DEBUG_OPTION

_is_worker = False


def main() -> None:
    """Prepare the work, then fork a worker on each request, until the process that started this one has ended."""
    control, buffer = socket.socket(fileno=int(sys.argv[1])), SharedBuffer(int(sys.argv[3]), int(sys.argv[2]))
    try:
        make, setup = receive(control)
        module, name = make.split(":")
        try:
            work = getattr(import_module(module), name)(setup)
        except Exception as error:
            send(control, as_own_error(error))
            return
        gc.freeze()  # what is there now stays; looking at it would copy its memory for each worker
        send(control, None)
        while True:
            request, handles, *_ = socket.recv_fds(control, REQUEST_BYTES, 1)
            if not request:
                return
            if request == FORK:
                send(control, _fork_worker(work, buffer, control, handles[0]))
            else:
                pid = int(request)
                os.kill(pid, signal.SIGKILL)  # it may have closed its connection only
                send(control, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    except (EOFError, OSError):
        pass  # the process that started this one has ended
    finally:
        os.killpg(0, signal.SIGKILL)


def _fork_worker(work: Callable[[Any], Any], buffer: SharedBuffer, control: socket.socket, handle: int) -> int:
    pid = os.fork()
    if not pid:
        try:
            control.close()
            serve(work, buffer, socket.socket(fileno=handle))
        except (EOFError, OSError):
            os._exit(0)  # the connection was closed
        finally:
            os._exit(1)  # unlike sys.exit, it does not wait for threads: some decoders' never end
    os.close(handle)
    return pid


def serve(work: Callable[[Any], Any], buffer: SharedBuffer, connection: socket.socket) -> None:
    """Do one call after the other, until the connection is closed."""
    global _is_worker
    _is_worker = True
    while True:
        argument, region, folder = receive(connection)
        arrays, is_error = list[pickle.PickleBuffer](), False
        try:
            os.chdir(folder)
            value = work(argument)
        except Exception as error:
            value, is_error = as_own_error(error), True
        end_after(0)
        pickled = pickle.dumps(value, protocol=5, buffer_callback=arrays.append)
        parts = [array.raw() for array in arrays]
        is_shared = region is not None and buffer.write(region, parts)
        inline = None if is_shared else list(map(bytearray, parts))
        send(connection, (is_error, pickled, [part.nbytes for part in parts], inline))


def as_own_error(error: Exception) -> PruneSIDError:
    """An error that can be sent to another process: many errors of libraries cannot."""
    if isinstance(error, PruneSIDError):
        return error
    failure = UnexpectedError(f"{type(error).__name__}: {error}", f"see more with: {DEBUG_OPTION}")
    failure.__cause__ = error
    return failure


def end_after(seconds: float) -> None:
    """Let the system end this worker after some seconds, whatever it is doing then; 0: never.

    Outside of a worker, it does nothing.
    """
    if _is_worker:
        signal.setitimer(signal.ITIMER_REAL, seconds)
