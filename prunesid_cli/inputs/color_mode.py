"""Pillow's image modes -> 8-bit RGB, and the orientation in EXIF.

A plain `convert("RGB")` is silently wrong for some modes: it drops alpha, saturates 16-bit grey, and clips integers
and floats. The functions also return a note for the user, which is empty if the conversion is the obvious one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Converted = tuple[Image.Image, str]

SIXTEEN_BIT_NOTE = "16-bit grey scaled to 8"
TRANSPARENCY_NOTE = "transparency composited on white"
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


def to_rgb(image: Image.Image) -> Converted:
    """Convert a loaded image of any mode to a new RGB image; transparency is composited on white."""
    convert = CONVERTERS.get(image.mode)
    if convert:
        return convert(image)
    if not image.has_transparency_data:
        return image.convert("RGB"), ""
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgba.convert("RGB"), ""
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=alpha)
    return canvas, TRANSPARENCY_NOTE


def read_orientation(file: Image.Image) -> tuple[Image.Transpose | None, str]:
    """How to transpose the pixels of a file so that they are upright, by its EXIF; None if they are."""
    try:
        return TRANSPOSES.get(file.getexif().get(ORIENTATION_TAG, 1)), ""
    except Exception:  # Pillow raises nearly anything on damaged EXIF; the pixels are intact, so only a note
        return None, "unreadable EXIF: the picture may be turned"


def _convert_cmyk(image: Image.Image) -> Converted:
    return image.convert("RGB"), "CMYK converted without a colour profile"


def _convert_16_bit(image: Image.Image) -> Converted:
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")  # of a PNG: one grey value that means transparent
    if not isinstance(transparent, int) or not (values == transparent).any():
        return Image.fromarray(grey).convert("RGB"), SIXTEEN_BIT_NOTE
    grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB"), f"{SIXTEEN_BIT_NOTE}, {TRANSPARENCY_NOTE}"


def _convert_32_bit(image: Image.Image) -> Converted:
    if image.format in ("PNG", "PPM"):  # 16 bits that Pillow keeps in 32
        return _convert_16_bit(image)
    values = np.array(image, dtype=np.float64)
    low, high = values.min(), values.max()
    return _scale(values, low, high), f"32-bit grey scaled from {low:.0f}..{high:.0f} to 0..255"


def _convert_float(image: Image.Image) -> Converted:
    """Scale from 0..1 if all values are in it, as is the custom; else from their own range. NaN and -inf are black."""
    values = np.array(image, dtype=np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    values = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    return _scale(values, low, high), f"float grey scaled from {low:g}..{high:g} to 0..255"


def _scale(values: np.ndarray[Any, np.dtype[np.float64]], low: float, high: float) -> Image.Image:
    """Scale low..high to 0..255, in place: at the pixel limit the values take most of a gigabyte."""
    values -= low
    values *= 255 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8)).convert("RGB")


CONVERTERS: dict[str, Callable[[Image.Image], Converted]] = {
    "CMYK": _convert_cmyk,
    "I;16": _convert_16_bit,
    "I;16B": _convert_16_bit,
    "I;16L": _convert_16_bit,
    "I;16N": _convert_16_bit,
    "I": _convert_32_bit,
    "F": _convert_float,
}
