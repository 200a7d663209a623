"""What a run that plans before it writes has measured, so that one that was interrupted measures only the rest.

`.prunesid.measured` in the cache's folder: 32 bytes that stand for all that the numbers depend on, then 32 for each
input: blake2b-128 of its name and stamp, its information (phi, fp64), its tokens (u32), and CRC-32 of these 28; little
endian. It is only appended to, and gone once a run came to the end of its inputs. Whatever of it is not whole, or is of
another model, is measured again; so it need not be synced.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prunesid_cli.tokencache.format import MEASUREMENT_LOG, canonical
from prunesid_cli.tokencache.index_table import Stamp
from prunesid_cli.tokencache.journal import unwritable

if TYPE_CHECKING:
    from prunesid_cli.tokencache.writer import CacheWriter

RECORD, CHECK, SIZE = struct.Struct("<16sdI"), struct.Struct("<I"), 32


class Measurement(NamedTuple):
    source: str
    stamp: Stamp
    phi: float
    total: int


class MeasurementLog:
    """What was measured before, 40 bytes an input, and a file to which more is added. `find` may be called by several
    threads.

    Raises:
        CacheError: it cannot be read, or not be written.
    """

    def __init__(self, writer: CacheWriter, draft: bool) -> None:
        run = writer.run
        basis = canonical([run.model, run.revision, run.dtype, writer.sampling, draft, writer.tool])
        self.path = writer.folder / MEASUREMENT_LOG
        self._head = hashlib.blake2b(basis.encode(), digest_size=SIZE).digest()
        rows = np.frombuffer(self._read(), np.uint8).reshape(-1, SIZE)
        keys = np.ascontiguousarray(rows[:, :8]).view("<u8")[:, 0]
        order = keys.argsort()
        self._keys, self._rows = keys[order], rows[order]

    def _read(self) -> bytes:
        """The records that are whole, behind which more can be written."""
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
            self._is_begun = data[:SIZE] == self._head
            whole = len(data) // SIZE * SIZE if self._is_begun else 0
            if self._is_begun:
                os.truncate(self.path, whole)
        except OSError as error:
            raise unwritable(self.path, error) from error
        return data[SIZE:whole]

    def find(self, source: str, stamp: Stamp) -> tuple[float, int] | None:
        """Information and tokens of an input that looks as it did when an earlier run measured it."""
        key = _key(source, stamp)
        row = int(np.searchsorted(self._keys, np.frombuffer(key[:8], "<u8")[0]))
        record = self._rows[row].tobytes() if row < len(self._rows) else b""
        found, phi, total = RECORD.unpack_from(record) if record else (b"", 0.0, 0)
        return (phi, total) if found == key and CHECK.pack(zlib.crc32(record[:-4])) == record[-4:] else None

    def add(self, measurements: Iterable[Measurement]) -> None:
        """By one write, so that an end at any moment leaves whole batches.

        Raises:
            CacheError: it cannot be written.
        """
        records = [RECORD.pack(_key(one.source, one.stamp), one.phi, one.total) for one in measurements]
        data = b"".join(record + CHECK.pack(zlib.crc32(record)) for record in records)
        try:
            with self.path.open("ab" if self._is_begun else "wb", buffering=0) as file:
                file.write(data if self._is_begun else self._head + data)
        except OSError as error:
            raise unwritable(self.path, error) from error
        self._is_begun = True


def _key(source: str, stamp: Stamp) -> bytes:
    told = os.fsencode(source) + struct.pack("<qq", *stamp)
    return hashlib.blake2b(told, digest_size=16).digest()
