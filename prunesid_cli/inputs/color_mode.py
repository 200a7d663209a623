"""Pillow's image modes -> 8-bit RGB, and the orientation in EXIF.

A plain `convert("RGB")` is silently wrong for some modes: it drops alpha, saturates 16-bit grey, and clips integers
and floats. The functions also return a note for the user, which is empty if the conversion is the obvious one.

Grey of 9 to 16 bits: 0 is black, and white is, in this order,

1. the largest value that the file declares: the tag MaxSampleValue or fewer than 16 BitsPerSample in a TIFF, the chunk
   sBIT in a PNG, the header of a PPM or JPEG 2000. A declaration that the file's own values exceed does not count.
2. the file's own largest value, if that leaves the two highest bits unused: a sensor of 10 to 14 bits that declares
   nothing, or a mask of 0 to 255.
3. 65535.

A TIFF with WhiteIsZero is inverted, at any depth.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from prunesid_cli.inputs.file_type import HEADER_BYTES
from prunesid_cli.inputs.tiff import Tag, is_white_zero, read_tags

Converted = tuple[Image.Image, str]
Array = np.ndarray[Any, Any]

SIXTEEN_BIT_NOTE = "16-bit grey scaled to 8"
TRANSPARENCY_NOTE = "transparency composited on white"
MAX_16_BIT = 0xFFFF
FAR_BELOW_16_BIT = 1 << 14
"""Grey of 16 bits whose values are all below this one is scaled from its own range."""
ORIENTATION_TAG = 0x0112  # in EXIF

# How to transpose an image stored with this orientation. `ImageOps.exif_transpose` does the same, but also writes the
# EXIF anew, and fails on a good image when that cannot be done.
TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

SWAPS_SIDES = {TRANSPOSES[orientation] for orientation in (5, 6, 7, 8)}
"""Those that exchange width and height."""


def to_rgb(image: Image.Image, data: bytes = b"") -> Converted:
    """Convert a loaded image of any mode to a new RGB image; transparency is composited on white.

    Args:
        image: The image.
        data: The file that it was read from. It says what Pillow drops: the range of grey values, and the low bytes of
            16-bit RGB.
    """
    convert = CONVERTERS.get(image.mode)
    if convert:
        return convert(image, data)
    if not image.has_transparency_data:
        return image.convert("RGB"), ""
    if image.mode == "RGB" and image.format == "PNG" and data[PNG_DEPTH_OFFSET : PNG_DEPTH_OFFSET + 1] == b"\x10":
        alpha = _clear_color_mask(image, data)
        rgba = image.copy()
        rgba.putalpha(alpha)
    else:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgba.convert("RGB"), ""
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=alpha)
    return canvas, TRANSPARENCY_NOTE


PNG_DEPTH_OFFSET = 24
"""Where a PNG has its number of bits per channel."""


def _clear_color_mask(image: Image.Image, data: bytes) -> Image.Image:
    """Alpha of a 16-bit RGB PNG in which one colour means transparent (tRNS).

    Pillow keeps the high byte of each value only, and colours that differ in the low byte are different colours. So the
    file is decoded once more, for the low bytes.
    """
    with Image.open(BytesIO(data), formats=["PNG"]) as low_bytes:
        codec, extent, offset, _ = low_bytes.tile[0]  # type: ignore[attr-defined]
        low_bytes.tile = [(codec, extent, offset, "RGB;16L")]  # type: ignore[attr-defined]
        low = np.asarray(low_bytes, np.uint16)
    values = np.asarray(image, np.uint16) << 8 | low
    is_clear = (values == np.array(image.info["transparency"], np.uint16)).all(axis=2)
    return Image.fromarray(np.where(is_clear, 0, 255).astype(np.uint8))


def read_orientation(file: Image.Image) -> tuple[Image.Transpose | None, str]:
    """How to transpose the pixels of a file so that they are upright, by its EXIF; None if they are."""
    try:
        return TRANSPOSES.get(file.getexif().get(ORIENTATION_TAG, 1)), ""
    except Exception:  # Pillow raises nearly anything on damaged EXIF; the pixels are intact, so only a note
        return None, "unreadable EXIF: the picture may be turned"


def _convert_cmyk(image: Image.Image, data: bytes) -> Converted:
    return image.convert("RGB"), "CMYK converted without a colour profile"


def _convert_16_bit(image: Image.Image, data: bytes) -> Converted:
    values = np.asarray(image)
    transparent = image.info.get("transparency")  # of a PNG: one grey value that means transparent
    is_clear = values == transparent if isinstance(transparent, int) else np.zeros(1, bool)
    white, origin = _white_value(int(values.max(initial=0, where=~is_clear)), image, data)
    if white == MAX_16_BIT:
        levels, note = np.arange(MAX_16_BIT + 1) >> 8, SIXTEEN_BIT_NOTE
    else:
        levels = ((510 * np.arange(MAX_16_BIT + 1) + white) // (2 * white)).clip(max=255)  # rounded, in integers
        note = f"16-bit grey scaled from 0..{white} ({origin}) to 0..255"
    if is_white_zero(data):
        levels = 255 - levels
    grey = levels.astype(np.uint8)[values]
    if is_clear.any():
        grey[is_clear] = 255
        note = f"{note}, {TRANSPARENCY_NOTE}"
    return Image.fromarray(grey).convert("RGB"), note


def _white_value(largest: int, image: Image.Image, data: bytes) -> tuple[int, str]:
    """The value that is white if this is the largest one, and where that is known from; see the top of this file."""
    declared = DECLARED_WHITE.get(image.format or "", lambda data, largest: 0)(data, largest)
    if declared and largest:
        return declared, "declared by the file"
    if 0 < largest < FAR_BELOW_16_BIT:
        return largest, "the range of its own values"
    return MAX_16_BIT, ""


def _declared_by_tiff(data: bytes, largest: int) -> int:
    tags = read_tags(data)
    limits = [2**bits - 1 for bits in tags.get(Tag.BITS_PER_SAMPLE, ())] + list(tags.get(Tag.MAX_SAMPLE_VALUE, ()))
    return min((limit for limit in limits if largest <= limit < MAX_16_BIT), default=0)


def _declared_by_png(data: bytes, largest: int) -> int:
    """By the chunk sBIT. Its significant bits are the upper ones, but some programs do not shift the values up."""
    chunk = data.find(b"sBIT", 0, max(data.find(b"IDAT"), 0))
    if chunk < 0 or data[chunk + 4] >= 16:
        return 0
    return 2 ** data[chunk + 4] - 1 if largest < 2 ** data[chunk + 4] else MAX_16_BIT


def _declared_by_ppm(data: bytes, largest: int) -> int:
    """Pillow has scaled the values from the range that the header declares to 16 bits, if they were fewer."""
    words = re.sub(rb"#[^\r\n]*", b"", data[:HEADER_BYTES]).split(maxsplit=4)
    return MAX_16_BIT if len(words) > 3 and words[3] != b"65535" else 0


def _declared_by_jpeg2000(data: bytes, largest: int) -> int:
    """Pillow has shifted the values up to 16 bits, if the marker SIZ declares fewer."""
    start = data.find(b"\xff\x51")
    return MAX_16_BIT if start >= 0 and (data[start + 40] & 0x7F) + 1 < 16 else 0


DECLARED_WHITE: dict[str, Callable[[bytes, int], int]] = {
    "TIFF": _declared_by_tiff,
    "PNG": _declared_by_png,
    "PPM": _declared_by_ppm,
    "JPEG2000": _declared_by_jpeg2000,
}
"""Format -> the value that is white by what a file with this largest value declares; 0 if it declares just 16 bits."""


def _convert_32_bit(image: Image.Image, data: bytes) -> Converted:
    if image.format in ("PNG", "PPM"):  # 16 bits that Pillow keeps in 32
        return _convert_16_bit(image, data)
    values = np.array(image, dtype=np.float64)
    low, high = values.min(), values.max()
    return _scale(values, low, high, data), f"32-bit grey scaled from {low:.0f}..{high:.0f} to 0..255"


def _convert_float(image: Image.Image, data: bytes) -> Converted:
    """Scale from 0..1 if all values are in it, as is the custom; else from their own range. NaN and -inf are black."""
    values = np.array(image, dtype=np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    values = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    return _scale(values, low, high, data), f"float grey scaled from {low:g}..{high:g} to 0..255"


def _scale(values: Array, low: float, high: float, data: bytes) -> Image.Image:
    """Scale low..high to 0..255, in place: at the pixel limit the values take most of a gigabyte."""
    values -= low
    values *= 255 / (high - low) if high > low else 0.0
    grey = np.rint(values, out=values).astype(np.uint8)
    return Image.fromarray(255 - grey if is_white_zero(data) else grey).convert("RGB")


CONVERTERS: dict[str, Callable[[Image.Image, bytes], Converted]] = {
    "CMYK": _convert_cmyk,
    "I;16": _convert_16_bit,
    "I;16B": _convert_16_bit,
    "I;16L": _convert_16_bit,
    "I;16N": _convert_16_bit,
    "I": _convert_32_bit,
    "F": _convert_float,
}
