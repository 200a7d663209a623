"""Pillow's image modes -> 8-bit RGB, and the orientation in EXIF.

A plain `convert("RGB")` is silently wrong for some modes: it drops alpha, saturates 16-bit grey, and clips integers
and floats. The functions also return a note for the user, which is empty if the conversion is the obvious one.

Grey of 9 to 16 bits: 0 is black, and white is, in this order,

1. the largest value that the file declares: the tag MaxSampleValue or fewer than 16 BitsPerSample in a TIFF, the chunk
   sBIT in a PNG, the header of a PPM or JPEG 2000. A declaration that the file's own values exceed does not count.
2. the file's own largest value, if that leaves the two highest bits unused: a sensor of 10 to 14 bits that declares
   nothing, or a mask of 0 to 255.
3. 65535.

Colours of 16 bits have the same white, one for all channels. Pillow keeps only their high bytes. Where white is not
65535, the low bytes are decoded, too; a note tells if that is not possible, and the picture is dark.

Of 8-bit pictures, only a TIFF is scaled whose MaxSampleValue leaves the two highest bits unused, if its values do, too.

A TIFF with WhiteIsZero is inverted, at any depth.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from prunesid_cli.inputs.file_type import HEADER_BYTES
from prunesid_cli.inputs.tiff import (
    UNSIGNED,
    Tag,
    first_value,
    is_16_bit_in_planes,
    is_white_zero,
    load_tiff,
    max_sample_values,
    read_tags,
)

Converted = tuple[Image.Image, str]
Array = np.ndarray[Any, Any]
Scaler = Callable[[Image.Image, Image.Image, bytes], Converted]

SIXTEEN_BIT_NOTE = "16-bit grey scaled to 8"
TRANSPARENCY_NOTE = "transparency composited on white"
MAX_16_BIT = 0xFFFF
FAR_BELOW_16_BIT = 1 << 14
"""Grey of 16 bits whose values are all below this one is scaled from its own range."""
MAX_BRIGHT_SHARE = 0.01
"""Share of pixels up to which those that are not far below 16 bits do not make a picture bright."""
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
    """Convert a loaded image of any mode to RGB; transparency is composited on white.

    Args:
        image: The image.
        data: The file that it was read from. It says what Pillow drops: the range of grey values, and the low bytes of
            16-bit RGB.
    """
    convert = CONVERTERS.get(image.mode)
    if convert:
        return convert(image, data)
    scale = COLOR_SCALERS.get(image.format or "", lambda data: None)(data) if image.mode in COLOR_MODES else None
    if not image.has_transparency_data and not scale:
        # An image that is no file has been made for this call, and needs no copy.
        return image if image.mode == "RGB" and image.format is None else image.convert("RGB"), ""
    if scale and image.mode == "RGB" and image.format == "PNG" and image.has_transparency_data:
        alpha = _clear_color_mask(image, data)
        rgba = image.copy()
        rgba.putalpha(alpha)
    else:
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
    note = ""
    if scale:
        rgba, note = scale(rgba, image, data)
    if alpha.getextrema() == (255, 255):
        return rgba.convert("RGB"), note
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=alpha)
    return canvas, f"{note}, {TRANSPARENCY_NOTE}" if note else TRANSPARENCY_NOTE


def _scale_16_bit_colors(rgba: Image.Image, image: Image.Image, data: bytes) -> Converted:
    """Scale colours of 16 bits as grey is scaled.

    Args:
        rgba: The high bytes. Clear pixels are no part of the range.
        image: What Pillow loaded.
        data: Contents of the file.

    Returns:
        RGBA, and a note; empty if the high bytes are right.
    """
    alpha = rgba.getchannel("A")
    counts = np.array(rgba.histogram(alpha.point([0] + 255 * [255]))).reshape(4, 256)[:3]  # of high bytes
    largest = int(counts.any(axis=0).nonzero()[0].max(initial=0))
    white, origin = _white_value(max(largest << 8, 1), image, data)
    if white == MAX_16_BIT:
        bright = int(counts[:, FAR_BELOW_16_BIT >> 8 :].sum(axis=1).max())
        return rgba, "" if origin else _few_bright_note(bright, rgba.width * rgba.height)
    low = _read_low_bytes(image, data)
    if low is None:
        return rgba, f"dark: no value is above {largest << 8 | 0xFF:,} of {MAX_16_BIT:,}, and they are not scaled"
    values = np.asarray(rgba, np.uint16)[..., :3] << 8 | low
    white, origin = _white_value(int((values * (np.asarray(alpha)[..., None] > 0)).max(initial=0)), image, data)
    if white == MAX_16_BIT:
        return rgba, ""
    scaled = Image.fromarray(_levels(white)[values])
    scaled.putalpha(alpha)
    return scaled, f"16-bit colours scaled from 0..{white} ({origin}) to 0..255"


def _scale_8_bit_colors(rgba: Image.Image, image: Image.Image, data: bytes) -> Converted:
    """Scale 8-bit grey or colours from the range that a TIFF declares, if it is far below 8 bits."""
    flip = 255 if is_white_zero(data) else 0  # Pillow has inverted the values
    values = np.asarray(rgba)[..., :3] ^ np.uint8(flip)
    limits = max_sample_values(read_tags(data))
    white = min((limit for limit in limits if values.max() <= limit < FAR_BELOW_16_BIT >> 8), default=0)
    if not white:
        return rgba, ""
    scaled = Image.fromarray(_levels(white)[values] ^ np.uint8(flip))
    scaled.putalpha(rgba.getchannel("A"))
    return scaled, f"8-bit values scaled from 0..{white} (declared by the file) to 0..255"


def _read_low_bytes(image: Image.Image, data: bytes) -> Array | None:
    """The low bytes of 16-bit colours, [H, W, 3]; None if Pillow does not give them.

    The file is decoded once more, with the bytes of each value in the wrong order.
    """
    if image.format not in ("PNG", "TIFF"):
        return None
    with Image.open(BytesIO(data), formats=[image.format or ""]) as file:
        tiles: list[Any] = file.tile  # type: ignore[attr-defined]
        arguments = [tile.args if isinstance(tile.args, tuple) else (tile.args,) for tile in tiles]
        modes = {LOW_BYTE_MODES.get(mode) for mode, *_ in arguments}
        if None in modes or (image.format == "TIFF" and is_16_bit_in_planes(file)):
            return None
        (mode,) = modes
        file.tile = [  # type: ignore[attr-defined]
            tile._replace(args=(mode, *rest)) for tile, (_, *rest) in zip(tiles, arguments, strict=True)
        ]
        if image.format == "TIFF":
            load_tiff(file)
        low = np.asarray(file)
    return low[..., 1:2] if mode == GREY_AND_ALPHA_BYTES else low[..., :3]


def _clear_color_mask(image: Image.Image, data: bytes) -> Image.Image:
    """Alpha of a 16-bit RGB PNG in which one colour means transparent (tRNS).

    Pillow keeps the high byte of each value only, and colours that differ in the low byte are different colours.
    """
    low = _read_low_bytes(image, data)
    assert low is not None  # Pillow reads it as RGB;16B
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
    note = f"16-bit grey scaled from 0..{white} ({origin}) to 0..255"
    if white == MAX_16_BIT:
        few_bright = (
            "" if origin else _few_bright_note(int(((values >= FAR_BELOW_16_BIT) & ~is_clear).sum()), values.size)
        )
        note = f"{SIXTEEN_BIT_NOTE}, {few_bright}" if few_bright else SIXTEEN_BIT_NOTE
    levels = _levels(white)
    grey = (255 - levels if is_white_zero(data) else levels)[values]
    if is_clear.any():
        grey[is_clear] = 255
        note = f"{note}, {TRANSPARENCY_NOTE}"
    return Image.fromarray(grey).convert("RGB"), note


def _levels(white: int) -> Array:
    """The 8-bit value of each 16-bit value, if this one is white."""
    values = np.arange(MAX_16_BIT + 1)
    if white == MAX_16_BIT:
        return (values >> 8).astype(np.uint8)
    return ((510 * values + white) // (2 * white)).clip(max=255).astype(np.uint8)  # rounded, in integers


def _few_bright_note(count: int, total: int) -> str:
    """A note if few of the pixels are not far below 16 bits: they keep the others from being scaled."""
    if not 0 < count < MAX_BRIGHT_SHARE * total:
        return ""
    return (
        f"low contrast: values above {FAR_BELOW_16_BIT - 1:,} of {MAX_16_BIT:,} in only {count:,} of {total:,} pixels"
    )


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
    limits = [2**bits - 1 for bits in tags.get(Tag.BITS_PER_SAMPLE, ())] + max_sample_values(tags)
    return min((limit for limit in limits if largest <= limit < MAX_16_BIT), default=0)


def _declared_by_png(data: bytes, largest: int) -> int:
    """By the chunk sBIT. Its significant bits are the upper ones, but some programs do not shift the values up."""
    chunk = data.find(b"sBIT", 0, max(data.find(b"IDAT"), 0))
    if chunk < 0 or data[chunk + 4] >= 16:
        return 0
    return 2 ** data[chunk + 4] - 1 if largest < 2 ** data[chunk + 4] else MAX_16_BIT


def _ppm_header(data: bytes) -> list[bytes]:
    """Signature, width, height, and the value that is white; then the rest."""
    return re.sub(rb"#[^\r\n]*", b"", data[:HEADER_BYTES]).split(maxsplit=4)


def _declared_by_ppm(data: bytes, largest: int) -> int:
    """Pillow has scaled the values from the range that the header declares to 16 bits, if they were fewer."""
    words = _ppm_header(data)
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
    tags = read_tags(data)
    is_unsigned = first_value(tags, Tag.SAMPLE_FORMAT, UNSIGNED) == UNSIGNED
    if is_unsigned and first_value(tags, Tag.BITS_PER_SAMPLE, 0) == 32:  # Pillow takes the values for signed ones
        values = np.asarray(image).view(np.uint32).astype(np.float64)
    else:
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

COLOR_MODES = frozenset({"L", "LA", "RGB", "RGBA"})
"""Modes in which Pillow gives colours of 16 bits, by their high bytes."""
GREY_AND_ALPHA_BYTES = "RGBA"
"""How a PNG of 16-bit grey with alpha is read for its low bytes: as high and low byte of each."""
OTHER_ORDER = "L" if sys.byteorder == "big" else "B"
LOW_BYTE_MODES = {
    "LA;16B": GREY_AND_ALPHA_BYTES,
} | {
    f"{colors};16{order}": f"{colors};16{other}"
    for colors in ("RGB", "RGBX", "RGBA")
    for order, other in (("L", "B"), ("B", "L"), ("N", OTHER_ORDER))
}
"""Pillow's raw mode -> the one that gives the low byte of each value in place of the high one."""


def _tiff_scaler(data: bytes) -> Scaler | None:
    tags = read_tags(data)
    if first_value(tags, Tag.BITS_PER_SAMPLE, 1) == 16:
        return _scale_16_bit_colors
    has_8_bits = first_value(tags, Tag.BITS_PER_SAMPLE, 1) == 8
    return _scale_8_bit_colors if has_8_bits and max_sample_values(tags) else None


def _jpeg2000_scaler(data: bytes) -> Scaler | None:
    start = data.find(b"\xff\x51")
    return _scale_16_bit_colors if start >= 0 and data[start + 40] & 0x7F == 15 else None


COLOR_SCALERS: dict[str, Callable[[bytes], Scaler | None]] = {
    "PNG": lambda data: _scale_16_bit_colors if data[24:25] == b"\x10" else None,
    "TIFF": _tiff_scaler,
    "PPM": lambda data: _scale_16_bit_colors if _ppm_header(data)[3:4] == [b"65535"] else None,
    "JPEG2000": _jpeg2000_scaler,
    "SGI": lambda data: _scale_16_bit_colors if data[3:4] == b"\2" else None,
}
"""Format -> what scales the colours of a file. Files of fewer bits are right as Pillow reads them."""
