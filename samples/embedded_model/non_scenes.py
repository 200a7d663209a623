"""Pictures that are not drawn scenes, as negatives for training: noise, textures, gradients, scribbles, clutter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from prunesid_cli.demo.scenes import SIDE

Pixels = NDArray[np.uint8]


def draw_non_scene(split: int, index: int) -> Pixels:
    """Return picture number `index` of a split, [336, 336, 3]."""
    rng = np.random.default_rng((split, index, 1))
    return PAINTERS[int(rng.integers(len(PAINTERS)))](rng)


def _to_pixels(values: NDArray[np.floating]) -> Pixels:
    return np.clip(values, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator) -> Pixels:
    depth = 1 if rng.random() < 0.3 else 3
    values = rng.integers(0, 256, (SIDE, SIDE, depth)) * rng.uniform(0.4, 1)
    return _to_pixels(np.broadcast_to(values, (SIDE, SIDE, 3)))


def _clouds(rng: np.random.Generator) -> Pixels:
    """Sums of smooth noise at several scales, like a photograph out of focus."""
    total = np.zeros((SIDE, SIDE, 3))
    for cells in (3, 6, 12, 24, 48, 96):
        coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64)
        total += (smooth - 128) * rng.uniform(0.1, 0.7)
    return _to_pixels(total + rng.uniform(60, 190, 3))


def _gradient(rng: np.random.Generator) -> Pixels:
    ramp = np.linspace(0, 1, SIDE)
    start, down, right = (rng.uniform(-200, 255, 3) for _ in range(3))
    values = start + ramp[:, None, None] * down + ramp[None, :, None] * right
    return _to_pixels(values % 256 if rng.random() < 0.3 else values)


def _stripes(rng: np.random.Generator) -> Pixels:
    y, x = np.mgrid[:SIDE, :SIDE]
    turn, period = rng.uniform(0, np.pi), rng.uniform(6, 60)
    wave = np.sin((x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period)
    if rng.random() < 0.5:
        wave = wave * np.sin((y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / period)
    if rng.random() < 0.5:
        wave = np.sign(wave)
    low, high = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
    return _to_pixels(low + (wave[..., None] + 1) / 2 * (high - low))


def _scribble(rng: np.random.Generator) -> Pixels:
    """Thin strokes on any ground, as in writing, line drawings and diagrams."""
    image = Image.new("RGB", (SIDE, SIDE), _random_colour(rng))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(5, 60))):
        start, reach = rng.uniform(0, SIDE, 2), rng.uniform(8, 120)
        steps = rng.normal(0, reach / 3, (int(rng.integers(1, 6)), 2)).cumsum(0)
        points = [tuple(start), *(tuple(point) for point in start + steps)]
        pen.line(points, fill=_random_colour(rng), width=int(rng.integers(1, 6)))
    return np.asarray(image)


def _clutter(rng: np.random.Generator) -> Pixels:
    """Many overlapping blobs and boxes of every size."""
    image = Image.new("RGB", (SIDE, SIDE), _random_colour(rng))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(12, 80))):
        x, y = rng.uniform(-40, SIDE, 2)
        width, height = rng.uniform(10, 200, 2)
        draw_shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        draw_shape((x, y, x + width, y + height), fill=_random_colour(rng))
    return np.asarray(image)


def _plain(rng: np.random.Generator) -> Pixels:
    """One dark or strong colour; a pale one would look like an empty scene."""
    colour = rng.uniform(0, 255, 3)
    colour[int(rng.integers(3))] *= 0.5
    return _to_pixels(np.broadcast_to(np.minimum(colour, 170), (SIDE, SIDE, 3)))


def _random_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


PAINTERS = (_noise, _clouds, _clouds, _gradient, _stripes, _scribble, _clutter, _plain)
