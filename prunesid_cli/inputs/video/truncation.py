"""Detects truncated video files by the sizes that their container declares. Demuxers read such files without error."""

from __future__ import annotations

import struct
from typing import BinaryIO

EBML_ID, SEGMENT_ID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
UNKNOWN_RIFF_SIZE = 0xFFFFFFFF
MP4_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
MAX_BOXES = 1_000_000


def is_truncated(file: BinaryIO, size: int) -> bool:
    """Whether a file ends before the end that its container declares; False if the container declares none.

    Args:
        file: The open file.
        size: Its size in bytes.
    """
    file.seek(0)
    header = file.read(12)
    if header[:4] == EBML_ID:
        return _matroska_end(file) > size
    if header[:4] == b"RIFF":
        (length,) = struct.unpack("<I", header[4:8])
        return length != UNKNOWN_RIFF_SIZE and 8 + length > size
    if header[4:8] in MP4_FIRST_BOXES:
        return _mp4_end(file) > size
    return False


def _mp4_end(file: BinaryIO) -> int:
    """Offset of the end of the last box of an MP4 or QuickTime file."""
    offset = 0
    for _ in range(MAX_BOXES):
        file.seek(offset)
        header = file.read(16)
        if len(header) < 8:
            break
        (length,) = struct.unpack(">I", header[:4])
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack(">Q", header[8:])
        if length < 8:  # 0: up to the end of the file
            break
        offset += length
    return offset


def _matroska_end(file: BinaryIO) -> int:
    """Offset of the end of the segment of a Matroska or WebM file; 0 if it is not declared."""
    file.seek(4)
    length = _read_ebml_number(file)
    if length is None:
        return 0
    file.seek(length, 1)
    if file.read(4) != SEGMENT_ID:
        return 0
    length = _read_ebml_number(file)
    return 0 if length is None else file.tell() + length


def _read_ebml_number(file: BinaryIO) -> int | None:
    """Read an EBML variable-size integer: the first set bit gives its length. All ones mean unknown: None."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    num_more = 8 - first[0].bit_length()
    unknown = (1 << 7 * (num_more + 1)) - 1
    value = int.from_bytes(first + file.read(num_more), "big") & unknown
    return None if value == unknown else value
