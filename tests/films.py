"""Clips encoded by PyAV at test time. Each frame shows its number in blocks, so that tests can tell frames apart."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")

BITS, BLOCK = 8, 16
SIZE = (BITS * BLOCK + 32, 96)
TURNS = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}
"""Degrees clockwise by which a player rotates the stored picture -> entries a, b, c, d of the display matrix."""


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A grey frame whose upper edge shows the number, lowest bit first; its lower right corner is red."""
    pixels = np.full((size[1], size[0], 3), 90, np.uint8)
    for bit in range(BITS):
        pixels[:BLOCK, bit * BLOCK : (bit + 1) * BLOCK] = 235 if number >> bit & 1 else 16
    pixels[-BLOCK:, -BLOCK:] = 200, 30, 30
    return pixels


def number_of(image: Image.Image) -> int:
    grey = np.asarray(image.convert("L"), float)
    middle = slice(BLOCK // 4, 3 * BLOCK // 4)
    blocks = [grey[middle, bit * BLOCK + 4 : bit * BLOCK + 12].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, grey in enumerate(blocks) if grey > 125)


def film(
    path: Path,
    times: Sequence[float] | int = 40,
    codec: str = "libx264",
    size: tuple[int, int] = SIZE,
    pixels: str = "yuv420p",
    muxer: dict[str, str] | None = None,
    traits: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Encode frame number i at `times[i]` seconds; if `times` is a number of frames, at 25 frames per second.

    `traits` are attributes of the encoder, such as `sample_aspect_ratio`.
    """
    times = [i / 25 for i in range(times)] if isinstance(times, int) else times
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = Fraction(1, 1000) if "mpeg" not in codec else Fraction(1, 25)
        for name, value in (traits or {}).items():
            setattr(stream.codec_context, name, value)
        stream.options = {"g": "12", **{name: str(value) for name, value in options.items()}}
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(number, size), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(time / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turned(path: Path, degrees: int) -> Path:
    """Add a display matrix to an MP4, as phones do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: 40 bytes before the matrix
    a, b, c, d = (entry << 16 for entry in TURNS[degrees])
    for offset, value in zip((0, 4, 12, 16), (a, b, c, d), strict=True):
        data[at + offset : at + offset + 4] = value.to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def sound(path: Path) -> Path:
    """A file with one second of silence and no video."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for number in range(16):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1000 * number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
