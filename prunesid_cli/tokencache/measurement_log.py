"""The log of a run that measures all images before it writes: if it is interrupted, the next run measures the rest.

`.prunesid.measured` in the folder of the cache is little endian. It begins with 32 bytes that stand for all settings
that the measurements depend on. A record of 32 bytes for each input follows: BLAKE2b-128 of its source and stamp, its
information (phi, float64), its tokens (uint32), and the CRC-32 of these 28 bytes. Records are only appended. The file
is deleted when a run has come to the end of its inputs. It is not synced, because damaged records and those of other
settings are measured again.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from prunesid_cli.tokencache.cache_errors import write_error
from prunesid_cli.tokencache.cache_file import create_file, open_file, read_file
from prunesid_cli.tokencache.format import MAX_PHI, MAX_SLOTS, MEASUREMENT_LOG, MIN_PHI, Run, canonical_json
from prunesid_cli.tokencache.index_table import Stamp

if TYPE_CHECKING:
    from prunesid_cli.tokencache.writer import CacheWriter

MAX_LOG_BYTES = 1 << 30
RECORD, CRC, RECORD_BYTES = struct.Struct("<16sdI"), struct.Struct("<I"), 32


class Measurement(NamedTuple):
    """What was measured of an input: its information, 1 - rho, and its tokens."""

    source: str
    stamp: Stamp
    phi: float
    total: int


class MeasurementLog:
    """The measurements of earlier runs, 40 bytes an input in memory, and the file to which new ones are appended.

    `find` may be called by several threads.
    """

    def __init__(self, writer: CacheWriter, downscale: bool) -> None:
        """Read the log of a cache.

        Args:
            writer: The writer of the cache.
            downscale: Whether images are decoded at a reduced size, which changes their information a little.

        Raises:
            CacheError: The log cannot be read or written.
        """
        run = writer.run
        settings = [run.model, run.revision, run.dtype, writer.sampling, downscale, writer.tool]
        settings += [run.fit] if run.fit != Run.fit else []
        self.path = writer.folder / MEASUREMENT_LOG
        self._head = hashlib.blake2b(canonical_json(settings).encode(), digest_size=RECORD_BYTES).digest()
        try:
            data = read_file(self.path, MAX_LOG_BYTES) or b""
            self._has_head = data[:RECORD_BYTES] == self._head
            end = len(data) // RECORD_BYTES * RECORD_BYTES if self._has_head else 0
            if self._has_head:
                with open_file(self.path, "r+b") as file:
                    file.truncate(end)  # new records follow the last complete one
        except OSError as error:
            raise write_error(self.path, error) from error
        records = np.frombuffer(data[RECORD_BYTES:end], np.uint8).reshape(-1, RECORD_BYTES)
        keys = np.ascontiguousarray(records[:, :8]).view("<u8")[:, 0]
        order = keys.argsort()
        self._keys, self._records = keys[order], records[order]

    def find(self, source: str, stamp: Stamp) -> tuple[float, int] | None:
        """Return the information and the tokens of an input, if its file has the same stamp since it was measured."""
        key = _record_key(source, stamp)
        row = int(np.searchsorted(self._keys, np.frombuffer(key[:8], "<u8")[0]))
        if row == len(self._records):
            return None
        record = self._records[row].tobytes()
        found_key, phi, total = RECORD.unpack_from(record)
        is_right = found_key == key and CRC.pack(zlib.crc32(record[:-4])) == record[-4:]
        is_right = is_right and MIN_PHI <= phi <= MAX_PHI and 0 < total <= MAX_SLOTS
        return (phi, total) if is_right else None

    def add(self, measurements: Iterable[Measurement]) -> None:
        """Append measurements with one write, so that an interruption leaves complete batches.

        Raises:
            CacheError: The log cannot be written.
        """
        records = [
            RECORD.pack(_record_key(measurement.source, measurement.stamp), measurement.phi, measurement.total)
            for measurement in measurements
        ]
        data = b"".join(record + CRC.pack(zlib.crc32(record)) for record in records)
        try:
            with open_file(self.path, "r+b") if self._has_head else create_file(self.path) as file:
                file.seek(0, os.SEEK_END)
                file.write(data if self._has_head else self._head + data)
        except OSError as error:
            raise write_error(self.path, error) from error
        self._has_head = True


def _record_key(source: str, stamp: Stamp) -> bytes:
    return hashlib.blake2b(os.fsencode(source) + struct.pack("<qq", *stamp), digest_size=16).digest()
