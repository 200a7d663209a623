"""Images and folder trees that give image loaders trouble. Each function returns bytes, or fills a folder.

`landmark` marks the corners by colour, so that a test can tell a rotated or mirrored image from an upright one.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
CORNERS = {"top left": RED, "top right": GREEN, "bottom left": BLUE, "bottom right": YELLOW}

# How to transpose the upright landmark before it is stored with this orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def landmark(width: int = 96, height: int = 64) -> Image.Image:
    """An image of four quarters, each in the colour of its corner."""
    pixels = np.empty((height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    pixels[:top, :left], pixels[:top, left:] = RED, GREEN
    pixels[top:, :left], pixels[top:, left:] = BLUE, YELLOW
    return Image.fromarray(pixels)


def corners(image: Image.Image) -> dict[str, Any]:
    """A pixel near each corner, far enough from the edges of the blocks for lossy formats."""
    width, height = image.size
    x, y = width // 8, height // 8
    right, bottom = width - 1 - x, height - 1 - y
    positions = {
        "top left": (x, y),
        "top right": (right, y),
        "bottom left": (x, bottom),
        "bottom right": (right, bottom),
    }
    return {name: image.getpixel(position) for name, position in positions.items()}


def turned(orientation: int, format: str) -> bytes:
    """The landmark, stored as by a camera held in this orientation."""
    turn = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = landmark() if turn is None else landmark().transpose(turn)
    return encoded(stored, format, exif=exif)


def noise(width: int = 128, height: int = 128) -> Image.Image:
    """Hard to compress, so that a truncation removes pixels."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, packed: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG with any declared size, any compressed pixels, and any further chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def bomb(width: int, height: int) -> bytes:
    """A complete, valid PNG with one bit per pixel: about a thousandth of its decoded size."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return png(width, height, 1, 0, packed)


def claim(width: int, height: int) -> bytes:
    """A PNG that declares a size but holds no pixels."""
    return png(width, height, 1, 0, zlib.compress(b""))


def text_bomb(size: int = 20_000_000) -> bytes:
    """One pixel, and a compressed comment of `size` bytes."""
    return png(1, 1, 8, 0, zlib.compress(b"\0\0"), (b"zTXt", b"k\0\0" + zlib.compress(bytes(size), 9)))


def grey16(values: list[int], *extra: tuple[bytes, bytes]) -> bytes:
    """One row of 16-bit grey as PNG."""
    return png(len(values), 1, 16, 0, zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values)), *extra)


def rgb16(red: int, green: int, blue: int) -> bytes:
    """One pixel with 16 bits per channel as PNG."""
    return png(1, 1, 16, 2, zlib.compress(b"\0" + struct.pack(">3H", red, green, blue)))


def row_tiff(
    values: list[Any], kind: Any, byte_order: str = "<", further: Mapping[int, int] = MappingProxyType({})
) -> bytes:
    """One row of grey as TIFF, in either byte order and any numeric type (uint16, int32, ...), with further tags."""
    pixels = np.array(values, np.dtype(kind).newbyteorder(byte_order)).tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[np.dtype(kind).kind]
    tags = {256: len(values), 257: 1, 258: 8 * np.dtype(kind).itemsize, 339: sample_format}
    return tiff(pixels, {**tags, **further}, byte_order)


def tiff(pixels: bytes, tags: dict[int, int], byte_order: str = "<") -> bytes:
    """A TIFF of one strip, or one tile, with these tags; grey without compression if they do not say otherwise."""
    where = {324: 8, 325: len(pixels)} if 322 in tags else {273: 8, 278: tags[257], 279: len(pixels)}
    tags = {259: 1, 262: 1, 277: 1} | where | tags
    entries = b"".join(struct.pack(byte_order + "HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    mark = b"II*\0" if byte_order == "<" else b"MM\0*"
    pixels += bytes(len(pixels) % 2)
    head = mark + struct.pack(byte_order + "I", 8 + len(pixels))
    return head + pixels + struct.pack(byte_order + "H", len(tags)) + entries + bytes(4)


def packed_rows(rows: list[list[int]], bits: int) -> bytes:
    """Values of `bits` bits without gaps, as in a TIFF; each row begins with a new byte."""
    text = ["".join(f"{value:0{bits}b}" for value in row) for row in rows]
    return b"".join(int(row.ljust(-(-len(row) // 8) * 8, "0"), 2).to_bytes(-(-len(row) // 8), "big") for row in text)


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated: few bytes, and much work for the decoder."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + count * scan + data[-2:]


def animated(format: str, frames: int = 3) -> bytes:
    """The landmark, then frames in other colours."""
    further = [Image.new("RGB", (96, 64), (0, 80 * count, 255)) for count in range(1, frames)]
    return encoded(landmark(), format, save_all=True, append_images=further)


def ftyp(brand: bytes) -> bytes:
    """The header of an MP4-like file without contents."""
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(1000)


def deep_tree(top: Path, name: str = "d" * 200, depth: int = 25) -> None:
    """Nested folders, until the path is longer than the system allows: listing the last ones fails even for root."""
    folder = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=folder)
        inner = os.open(name, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
