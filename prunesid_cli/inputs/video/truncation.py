"""Whether a file ends before it says that it does, by the sizes that its container declares. Demuxers read such files
as if nothing were missing."""

from __future__ import annotations

import struct
from typing import BinaryIO

EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
UNKNOWN = 0xFFFFFFFF
MOST_BOXES = 1_000_000


def is_cut_short(file: BinaryIO, size: int) -> bool:
    """file: open, of `size` bytes. False where its kind of container does not tell."""
    file.seek(0)
    head = file.read(12)
    if head[:4] == EBML:
        return _matroska_end(file) > size
    if head[:4] == b"RIFF":
        (length,) = struct.unpack("<I", head[4:8])
        return length != UNKNOWN and 8 + length > size
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return _boxes_end(file) > size
    return False


def _boxes_end(file: BinaryIO) -> int:
    """Where the last box of an MP4 or QuickTime file ends."""
    at = 0
    for _ in range(MOST_BOXES):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            break
        (length,) = struct.unpack(">I", head[:4])
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
        if length < 8:  # 0: up to the end
            break
        at += length
    return at


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment of a Matroska or WebM file ends; 0 where it does not tell."""
    file.seek(4)
    length = _number(file)
    if length is None:
        return 0
    file.seek(length, 1)
    if file.read(4) != SEGMENT:
        return 0
    length = _number(file)
    return 0 if length is None else file.tell() + length


def _number(file: BinaryIO) -> int | None:
    """EBML's numbers: as many bytes as the first one's first bit set says; all ones is unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(more), "big") & ((1 << 7 * (more + 1)) - 1)
    return None if value == (1 << 7 * (more + 1)) - 1 else value
