"""Pillow's many modes -> RGB of eight bits, and the turn that EXIF asks for.

A plain `convert("RGB")` is silently wrong for some modes: it drops alpha, saturates 16-bit grey, and clips
integers and floats. Each function returns the picture and a note for the user, empty when nothing was decided.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Converted = tuple[Image.Image, str]

SIXTEEN_BIT_NOTE = "16-bit grey scaled to 8"
ORIENTATION = 0x0112  # the EXIF tag

# What brings a picture stored with this orientation upright. `ImageOps.exif_transpose` does the same, but also
# writes the EXIF anew, and fails on a good picture when that cannot be done.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

SIDEWAYS = {TURNS[orientation] for orientation in (5, 6, 7, 8)}


def to_rgb(image: Image.Image) -> Converted:
    """A loaded picture of any mode -> a new one in RGB; transparency is laid on white."""
    convert = CONVERTERS.get(image.mode, _plain)
    return convert(image)


def apply_orientation(rgb: Image.Image, file: Image.Image) -> Converted:
    """`rgb` as the EXIF of `file`, which it came from, says that it should be seen."""
    turn, note = _turn(file)
    return (rgb if turn is None else rgb.transpose(turn)), note


def oriented_size(size: tuple[int, int], file: Image.Image) -> tuple[int, int]:
    """Width and height of a picture of this size in `file` once it is `oriented`."""
    return size[::-1] if _turn(file)[0] in SIDEWAYS else size


def _turn(file: Image.Image) -> tuple[Image.Transpose | None, str]:
    try:
        return TURNS.get(file.getexif().get(ORIENTATION, 1)), ""
    except Exception:  # Pillow's reader raises nearly anything on damaged EXIF; the picture itself is whole, so: a note
        return None, "unreadable EXIF: the picture may be turned"


def _plain(image: Image.Image) -> Converted:
    if not image.has_transparency_data:
        return image.convert("RGB"), ""
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return rgba.convert("RGB"), ""
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=alpha)
    return canvas, "transparency composited on white"


def _cmyk(image: Image.Image) -> Converted:
    return image.convert("RGB"), "CMYK converted without a colour profile"


def _grey16(image: Image.Image) -> Converted:
    values = np.asarray(image)
    grey = (values >> 8).astype(np.uint8)
    clear = image.info.get("transparency")  # PNG: one grey that stands for nothing
    if not isinstance(clear, int) or not (values == clear).any():
        return Image.fromarray(grey).convert("RGB"), SIXTEEN_BIT_NOTE
    grey[values == clear] = 255
    return Image.fromarray(grey).convert("RGB"), f"{SIXTEEN_BIT_NOTE}, transparency composited on white"


def _integer(image: Image.Image) -> Converted:
    if image.format in ("PNG", "PPM"):  # 16 bits that Pillow keeps in 32
        return _grey16(image)
    values = np.array(image, dtype=np.float64)
    low, high = values.min(), values.max()
    return _scaled(values, low, high), f"32-bit grey scaled from {low:.0f}..{high:.0f} to 0..255"


def _float(image: Image.Image) -> Converted:
    """From 0..1 if the values keep to it, as is the custom; else from their own range. NaN and -inf are black."""
    values = np.array(image, dtype=np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    values = np.nan_to_num(values, copy=False, nan=low, posinf=high, neginf=low)
    return _scaled(values, low, high), f"float grey scaled from {low:g}..{high:g} to 0..255"


def _scaled(values: np.ndarray[Any, np.dtype[np.float64]], low: float, high: float) -> Image.Image:
    """low..high -> 0..255; in place, for at the pixel limit the values are most of a gigabyte."""
    values -= low
    values *= 255 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint(values, out=values).astype(np.uint8)).convert("RGB")


CONVERTERS: dict[str, Callable[[Image.Image], Converted]] = {
    "CMYK": _cmyk,
    "I;16": _grey16,
    "I;16B": _grey16,
    "I;16L": _grey16,
    "I;16N": _grey16,
    "I": _integer,
    "F": _float,
}
