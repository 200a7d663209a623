"""Pickled messages over sockets between processes."""

from __future__ import annotations

import pickle
import socket
from typing import Any

LENGTH_BYTES = 8
CHUNK_BYTES = 1 << 16


def send(connection: socket.socket, message: Any) -> None:
    """Send an object.

    Raises:
        OSError: The other side has gone.
    """
    data = pickle.dumps(message)
    connection.sendall(len(data).to_bytes(LENGTH_BYTES, "little") + data)


def receive(connection: socket.socket) -> Any:
    """Wait for the next object. The other side sends no further one before this one was answered.

    Raises:
        EOFError: The other side has gone.
        OSError: It has gone, and did not read all that was sent to it.
    """
    buffer, end, size = bytearray(CHUNK_BYTES), 0, LENGTH_BYTES
    while end < size:
        length = connection.recv_into(memoryview(buffer)[end:])  # mostly a whole message, with one system call
        if not length:
            raise EOFError
        end += length
        if end >= LENGTH_BYTES:
            size = LENGTH_BYTES + int.from_bytes(buffer[:LENGTH_BYTES], "little")
            buffer += bytes(max(0, size - len(buffer)))
    return pickle.loads(memoryview(buffer)[LENGTH_BYTES:size])
