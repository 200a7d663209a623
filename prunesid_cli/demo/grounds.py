"""Grounds of drawn scenes: plain, textured or cluttered, in colours that no thing has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.float32]
"""[S, S, 3], from 0 to 255."""
CLOUD_CELLS = (4, 9, 20, 45)
"""Cells of the scales of a cloud, along a side."""


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is spread evenly."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _plain(pixels: Pixels, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(pixels.astype(np.uint8))


def _textured(pixels: Pixels, rng: np.random.Generator) -> Image.Image:
    """Stripes, checks or clouds, in one or all colour channels, and grain."""
    side = len(pixels)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    turn, period = rng.uniform(0, np.pi), rng.uniform(5, 50)
    along = np.sin((x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period)
    across = np.sin((y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / period)
    style = int(rng.integers(4))
    pattern = _clouds(side, rng) if style == 3 else (along, along * across, np.sign(along * across))[style]
    tint = rng.uniform(8, 30) * (1 + rng.normal(0, 0.25, 3))
    grain = rng.uniform(0, 6) * rng.standard_normal((side, side, 1), dtype=np.float32)
    return Image.fromarray(np.clip(pixels + pattern[..., None] * tint + grain, 90, 250).astype(np.uint8))


def _clouds(side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Sum of smooth noise at several scales [S, S]."""
    scales = [Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32)) for cells in CLOUD_CELLS]
    smooth = [np.asarray(scale.resize((side, side), Image.Resampling.BICUBIC)) for scale in scales]
    return np.sum(smooth, axis=0)


def _cluttered(pixels: Pixels, rng: np.random.Generator) -> Image.Image:
    """Strokes, arcs, blobs and boxes in greys and pale tints."""
    image = Image.fromarray(pixels.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(8, 45))):
        red, green, blue = (int(value) for value in np.clip(rng.uniform(95, 245) + rng.normal(0, 9, 3), 80, 250))
        ink = (red, green, blue)
        x, y = (float(value) for value in rng.uniform(-20, len(pixels), 2))
        width, height = log_uniform(rng, 6, 90), log_uniform(rng, 6, 90)
        box, stroke = (x, y, x + width, y + height), int(rng.integers(1, 5))
        style = int(rng.integers(5))
        if style == 0:
            pen.ellipse(box, fill=ink)
        elif style == 1:
            pen.rectangle(box, fill=ink)
        elif style == 2:
            start = float(rng.uniform(0, 360))
            pen.arc(box, start, start + float(rng.uniform(60, 250)), fill=ink, width=stroke)
        else:
            steps = rng.normal(0, (width, height), (int(rng.integers(1, 5)), 2)).cumsum(0)
            points = [(x, y), *((float(x + right), float(y + down)) for right, down in steps)]
            pen.line(points, fill=ink, width=stroke)
    return image


GROUNDS: dict[str, Callable[[Pixels, np.random.Generator], Image.Image]] = {
    "plain": _plain,
    "textured": _textured,
    "cluttered": _cluttered,
}
