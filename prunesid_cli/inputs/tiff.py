"""TIFF beside Pillow: tags, camera raw, depths that Pillow does not read, and damage that libtiff paints over.

All functions are about the first picture of the file (its first IFD), which is the one that is used.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from enum import IntEnum
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from prunesid_cli.inputs.file_type import RAW_EXTENSIONS
from prunesid_cli.runtime.captured_stderr import captured_stderr

Tags = Mapping[int, tuple[Any, ...]]


class Tag(IntEnum):
    """Tags that are read."""

    SUBFILE_TYPE = 254
    OLD_SUBFILE_TYPE = 255
    WIDTH = 256
    HEIGHT = 257
    BITS_PER_SAMPLE = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    MAKE = 271
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    SAMPLES_PER_PIXEL = 277
    STRIP_SIZES = 279
    MAX_SAMPLE_VALUE = 281
    PLANAR_CONFIGURATION = 284
    PREDICTOR = 317
    TILE_WIDTH = 322
    TILE_OFFSETS = 324
    TILE_SIZES = 325
    SUB_IFDS = 330
    SAMPLE_FORMAT = 339
    JPEG_TABLES = 347
    DNG_VERSION = 50706


NEXT_IFD = -1
"""Key of the position of the next picture, among the tags; 0 if there is none."""

UNCOMPRESSED, JPEG = 1, 7
REDUCED_COPY = 2
"""Value of the old tag for the kind of a picture."""
IN_PLANES = 2
"""PlanarConfiguration of a file that has all values of one channel, then all of the next."""
NO_PREDICTOR = 1
MAX_SUB_IFDS = 16
"""Number of pictures below the first one that are looked at."""
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
RAW_PHOTOMETRICS = {32803: "a colour filter array", 34892: "linear raw"}
RAW_COMPRESSIONS = frozenset({32767, 32769, 32770, 34713, 65000, 65535})  # Sony, Epson, Samsung, Nikon, Kodak, Pentax
COMPRESSIONS = {
    33003: "JPEG 2000", 33005: "JPEG 2000", 34661: "JBIG", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA",
    50000: "ZSTD", 50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
"""Names of compressions that Pillow's libtiff mostly does not decode."""
UNSIGNED, SIGNED = 1, 2
SAMPLE_FORMATS = {SIGNED: "signed", 3: "float", 5: "complex integer", 6: "complex float"}
CODEC_MESSAGE = re.compile(r"\w*Decode\w*: |JPEGLib: |OJPEG\w*: |TIFFFill\w+: ")
"""Beginning of what libtiff says about pixels. It also complains about tags that do not matter."""


def read_tags(data: bytes, start: int = 0) -> Tags:
    """The tags among `Tag` of the first picture, and `NEXT_IFD`; nothing if it is no TIFF or they cannot be read.

    Args:
        data: Contents of the file.
        start: Position of the tags of another picture.
    """
    try:
        ifd = ImageFileDirectory_v2(data[: 16 if 43 in data[2:4] else 8])
        file = BytesIO(data)
        start = start or ifd.next
        file.seek(start)
        ifd.load(file)
        if ifd.next == start:  # it stopped at the end of the file
            return {}
        values = {tag: ifd[tag] for tag in Tag if tag in ifd}
    except Exception:  # Pillow raises nearly anything on damaged files
        return {}
    return {tag: value if isinstance(value, tuple) else (value,) for tag, value in values.items()} | {
        NEXT_IFD: (ifd.next,)
    }


def first_value(tags: Tags, tag: int, default: int) -> int:
    """The first value of a tag."""
    return next(iter(tags.get(tag, ())), default)


def max_sample_values(tags: Tags) -> list[int]:
    """The largest value of each channel that a TIFF declares."""
    return [value for value in tags.get(Tag.MAX_SAMPLE_VALUE, ()) if isinstance(value, int)]


def is_white_zero(data: bytes) -> bool:
    """Whether a file is a TIFF whose value 0 is white."""
    return first_value(read_tags(data), Tag.PHOTOMETRIC, BLACK_IS_ZERO) == WHITE_IS_ZERO


def camera_raw_kind(data: bytes, tags: Tags, source: str) -> str:
    """What kind of camera raw a TIFF is: "DNG", "NEF", or the maker of the camera; empty if it is none.

    Its sensor values may be in a picture below the first one (SubIFDs), which is then a small preview.
    """
    extension = os.path.splitext(source)[1].lower()
    if Tag.DNG_VERSION in tags:
        return "DNG"
    if extension in RAW_EXTENSIONS:
        return extension[1:].upper()
    starts = [start for start in tags.get(Tag.SUB_IFDS, ())[:MAX_SUB_IFDS] if isinstance(start, int)]
    pictures = [tags, *(read_tags(data, start) for start in starts)]
    photometrics = [first_value(picture, Tag.PHOTOMETRIC, BLACK_IS_ZERO) for picture in pictures]
    content = next((RAW_PHOTOMETRICS[value] for value in photometrics if value in RAW_PHOTOMETRICS), "")
    is_raw = (
        bool(content)
        or any(first_value(picture, Tag.COMPRESSION, UNCOMPRESSED) in RAW_COMPRESSIONS for picture in pictures)
        or (is_thumbnail(tags) and Tag.SUB_IFDS in tags)
    )
    maker = str(next(iter(tags.get(Tag.MAKE, ())), "")).strip()
    return maker or (f"TIFF with {content}" if content else "TIFF") if is_raw else ""


def is_thumbnail(tags: Tags) -> bool:
    """Whether the first picture is a reduced copy of another one in the file."""
    has_others = Tag.SUB_IFDS in tags or first_value(tags, NEXT_IFD, 0) > 0
    is_reduced = (
        first_value(tags, Tag.SUBFILE_TYPE, 0) & 1 or first_value(tags, Tag.OLD_SUBFILE_TYPE, 0) == REDUCED_COPY
    )
    return bool(is_reduced) and has_others


def describe(tags: Tags) -> str:
    """Samples, compression, predictor: "3 float samples of 32 bits, compression LERC"."""
    samples, bits = first_value(tags, Tag.SAMPLES_PER_PIXEL, 1), first_value(tags, Tag.BITS_PER_SAMPLE, 1)
    number_format = SAMPLE_FORMATS.get(first_value(tags, Tag.SAMPLE_FORMAT, UNSIGNED), "")
    compression = first_value(tags, Tag.COMPRESSION, UNCOMPRESSED)
    parts = [" ".join(f"{samples} {number_format} sample{'s' if samples > 1 else ''} of {bits} bits".split())]
    if compression > 8:
        parts.append(f"compression {COMPRESSIONS.get(compression, compression)}")
    if (predictor := first_value(tags, Tag.PREDICTOR, NO_PREDICTOR)) != NO_PREDICTOR:
        parts.append(f"predictor {predictor}")
    return ", ".join(parts)


def to_readable(data: bytes, tags: Tags) -> bytes:
    """A TIFF with the same values that Pillow reads, if it would not read this one for its depth or WhiteIsZero.

    Grey of 9 to 15 bits is packed without gaps between the pixels. To whatever decodes the compression, such a row is a
    row of bytes, so Pillow decodes it as 8-bit grey; then the bits are regrouped. Grey of more bits with WhiteIsZero
    is read by Pillow in some byte orders only, and never inverted: `color_mode` inverts it.

    Raises:
        ValueError: Pillow would read it wrong: signed values as unsigned ones, or packed values that were subtracted
            from each other.
    """
    bits, width = first_value(tags, Tag.BITS_PER_SAMPLE, 1), first_value(tags, Tag.WIDTH, 0)
    sample_format = first_value(tags, Tag.SAMPLE_FORMAT, UNSIGNED)
    if sample_format == SIGNED and bits == 8:
        raise ValueError("signed samples of 8 bits are not supported")
    if first_value(tags, Tag.SAMPLES_PER_PIXEL, 1) != 1 or bits <= 8:
        return data
    if bits >= 16 or sample_format != UNSIGNED:
        is_inverted = first_value(tags, Tag.PHOTOMETRIC, BLACK_IS_ZERO) == WHITE_IS_ZERO
        return _with_values(data, {Tag.PHOTOMETRIC: BLACK_IS_ZERO}) if is_inverted else data
    is_compressed = first_value(tags, Tag.COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED
    if is_compressed and first_value(tags, Tag.PREDICTOR, NO_PREDICTOR) != NO_PREDICTOR:
        raise ValueError("a predictor with packed values is not supported")
    changes: dict[int, int] = {
        Tag.WIDTH: -(-width * bits // 8),
        Tag.BITS_PER_SAMPLE: 8,
        Tag.PHOTOMETRIC: BLACK_IS_ZERO,
        Tag.ORIENTATION: 1,
    }
    if Tag.TILE_WIDTH in tags:
        changes[Tag.TILE_WIDTH] = first_value(tags, Tag.TILE_WIDTH, 0) * bits // 8
    with Image.open(BytesIO(_with_values(data, changes)), formats=["TIFF"]) as file:
        load_tiff(file)
        rows = np.asarray(file)
    values, weights = np.empty((len(rows), width), np.uint16), 1 << np.arange(bits)[::-1]
    for row, packed in zip(values, rows, strict=True):
        row[:] = np.unpackbits(packed)[: width * bits].reshape(width, bits) @ weights
    buffer = BytesIO()
    Image.fromarray(values).save(buffer, "TIFF", tiffinfo={Tag.ORIENTATION: first_value(tags, Tag.ORIENTATION, 1)})
    return buffer.getvalue()


def _with_values(data: bytes, changes: Mapping[int, int]) -> bytes:
    """A TIFF with other values of tags that have one value. Tags that the file does not have are not added."""
    order, is_big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (count,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    start, size, value_offset = (start + 8, 20, 12) if is_big else (start + 2, 12, 8)
    changed = bytearray(data)
    for entry in range(start, start + count * size, size):
        (tag,) = struct.unpack_from(order + "H", data, entry)
        if tag in changes:
            struct.pack_into(order + "H", changed, entry + 2, 4)  # an integer of 32 bits
            struct.pack_into(order + "I", changed, entry + value_offset, changes[tag])
    return bytes(changed)


def jpeg_streams(data: bytes) -> Iterator[bytes]:
    """The strips or tiles of a TIFF with JPEG compression, each as a JPEG; nothing for other files."""
    tags = read_tags(data)
    if first_value(tags, Tag.COMPRESSION, UNCOMPRESSED) != JPEG:
        return
    tables = next(iter(tags.get(Tag.JPEG_TABLES, ())), b"")[:-2]  # without its end marker
    offsets = tags.get(Tag.STRIP_OFFSETS) or tags.get(Tag.TILE_OFFSETS, ())
    for offset, size in zip(offsets, tags.get(Tag.STRIP_SIZES) or tags.get(Tag.TILE_SIZES, ()), strict=False):
        part = data[offset : offset + size]
        yield tables + part[2:] if tables else part


def is_16_bit_in_planes(file: Any) -> bool:
    """Whether an opened TIFF has several channels of 16 bits, one behind the other."""
    bits, planes = file.tag_v2.get(Tag.BITS_PER_SAMPLE, (1,)), file.tag_v2.get(Tag.PLANAR_CONFIGURATION, 1)
    return bits[0] == 16 and len(file.getbands()) > 1 and planes == IN_PLANES


def load_tiff(file: Any) -> str:
    """Load the pixels of an opened TIFF.

    Returns:
        What libtiff said about damaged pixels, which it replaces by others; empty if it said nothing.

    Raises:
        OSError: libtiff cannot decode the file; with its message, which says more than Pillow's.
    """
    if file.tag_v2.get(Tag.COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED:  # Pillow reads it without libtiff
        if is_16_bit_in_planes(file):  # Pillow takes the values for 8 bits
            suffix = ";16L" if file.tag_v2.prefix == b"II" else ";16B"
            file.tile = [tile._replace(args=(tile.args[0] + suffix, *tile.args[1:])) for tile in file.tile]
        file.load()
        return ""
    failure = None
    with captured_stderr() as printed:
        try:
            file.load()
        except OSError as error:
            failure = error
    if failure and printed:
        raise OSError(printed[0].removeprefix("tempfile.tif: ").rstrip(".")) from failure
    if failure:
        raise failure
    return next((line.rstrip(".") for line in printed if CODEC_MESSAGE.match(line)), "")
