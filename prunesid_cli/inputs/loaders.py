"""How pixels are loaded where the format's decoder says too little: damage that it replaces, and what it leaves out.

libjpeg gives warnings about pixels that it replaces, and Pillow drops them. So JPEGs are decoded by simplejpeg, which
raises them. It uses the same library in the same way, so pixels are the same. Where it gives a warning, or if a JPEG is
unusual, Pillow decodes, and the file is decoded once more at an eighth of its size, for the warnings alone. They are
not available for unusual subsampling. libtiff writes to stderr, which is caught.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import simplejpeg
from PIL import Image

from prunesid_cli.inputs import tiff

Loaded = tuple[Image.Image, str]
# What libjpeg says about pixels that it replaced. Other warnings are about metadata.
JPEG_DAMAGE = re.compile(
    r"premature end|Premature end|bad (Huffman|arithmetic) code|found marker|extraneous bytes|Inconsistent progression"
)
EXTRANEOUS_BYTES = re.compile(r"(\d+) extraneous bytes before marker 0x(\w\w)")
MAX_PADDING_BYTES = 64
"""Zeros that some cameras put in front of a marker."""

MAX_USUAL_SCANS, SMALL_BLOCK_BYTES = 100, 256
"""A JPEG with more scans is read in small blocks: in 64 KiB, Pillow's choice, thousands of scans can take minutes."""
FULL_SIZE = ((), (1, 0))
"""Values of `decoderconfig` of a file, unless `draft` has asked for a part of the size."""
JPEG_COLORS = {"RGB": "RGB", "L": "GRAY"}
"""Mode of a JPEG -> name of the same in simplejpeg, for JPEGs that it decodes alone."""
PSD_VERSION_INFO, PSD_MULTICHANNEL = 1057, 7  # a resource, and a colour mode
PSD_CHANNELS_OFFSET, ROW_LENGTH_BYTES = 12, 2


def _load_jpeg(file: Any, data: bytes) -> Loaded:
    """Load the pixels; the damage is what libjpeg says of it."""
    has_usual_scans = data.count(b"\xff\xda") <= MAX_USUAL_SCANS
    if has_usual_scans and file.mode in JPEG_COLORS and file.decoderconfig in FULL_SIZE:
        with suppress(ValueError):  # a warning, which is read again below
            pixels = simplejpeg.decode_jpeg(data, JPEG_COLORS[file.mode])
            return Image.fromarray(pixels.squeeze(-1) if file.mode == "L" else pixels), ""
    if not has_usual_scans:
        file.decodermaxblock = SMALL_BLOCK_BYTES
    file.load()
    try:
        colors = "CMYK" if file.mode == "CMYK" else "GRAY"
        simplejpeg.decode_jpeg(data, colors, min_height=1, min_width=1, min_factor=8)
    except ValueError as warning:
        return file, jpeg_damage(str(warning), data)
    return file, ""


def _load_tiff(file: Any, data: bytes) -> Loaded:
    """Load the pixels; the damage is what libtiff or libjpeg says of it."""
    return file, tiff.load_tiff(file) or jpeg_damage_in_tiff(data)


def _load_psd(file: Any, data: bytes) -> Loaded:
    """Load the composite picture.

    The lengths of all compressed rows precede the first row. Pillow skips only those of the channels that it reads.

    Raises:
        ValueError: There is none, it is compressed by ZIP, or its colours are unknown inks.
    """
    if any(kind == PSD_VERSION_INFO and body[4:5] == b"\0" for kind, _, body in file.resources):
        raise ValueError("saved without the composite picture, which is not supported")
    if data[25] == PSD_MULTICHANNEL:
        raise ValueError("multichannel colours are not supported")
    if not file.tile:
        raise ValueError("ZIP compression is not supported")
    if file.tile[0].codec_name == "packbits":
        skipped = psd_channels_left_out(file, data) * file.height * ROW_LENGTH_BYTES
        file.tile = [tile._replace(offset=tile.offset + skipped) for tile in file.tile]
    file.load()
    return file, ""


def psd_channels_left_out(file: Any, data: bytes) -> int:
    """Number of channels of a PSD that Pillow does not read: transparency of grey or CMYK, inks, stored selections."""
    (count,) = struct.unpack_from(">H", data, PSD_CHANNELS_OFFSET)
    return int(count) - len(file.getbands())


def jpeg_damage(warning: str, data: bytes) -> str:
    """A warning of libjpeg about a file, if it is about damaged pixels; else nothing."""
    if not JPEG_DAMAGE.search(warning):
        return ""
    if extraneous := EXTRANEOUS_BYTES.search(warning):
        count, marker = int(extraneous[1]), bytes([0xFF, int(extraneous[2], 16)])
        if count <= MAX_PADDING_BYTES and bytes(count) + marker in data:
            return ""
    return warning


def jpeg_damage_in_tiff(data: bytes) -> str:
    """What libjpeg says about damage in a TIFF with JPEG compression; Pillow turns libtiff's warnings off."""
    for stream in tiff.jpeg_streams(data):
        try:
            simplejpeg.decode_jpeg(stream, "GRAY", min_height=1, min_width=1, min_factor=8)
        except ValueError as warning:
            if damage := jpeg_damage(str(warning), stream):
                return damage
    return ""


LOADERS: dict[str, Callable[[Any, bytes], Loaded]] = {
    "JPEG": _load_jpeg,
    "MPO": _load_jpeg,
    "TIFF": _load_tiff,
    "PSD": _load_psd,
}
"""How to load formats whose decoder replaces damaged pixels without an error, and PSD, which may lack its picture.

A loader gets an opened file and its contents. It returns the image with its pixels, and what is damaged.
"""
