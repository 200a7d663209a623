"""Drawn scenes: one to three things on a pale background, and what every patch of them shows.

A scene is a pure function of (split, index), so the training scenes and the held-out ones are two streams that
never meet, and any one scene can be drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIDE = 336
PATCH = 14
GRID = SIDE // PATCH
SHAPES = ("circle", "square", "triangle", "cross", "star", "ring")
NUMBER = "number"
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (235, 215, 35),
    "green": (45, 160, 60),
    "cyan": (50, 200, 210),
    "blue": (40, 70, 205),
    "purple": (140, 50, 170),
    "black": (25, 25, 28),
}
TRAIN, HELD_OUT = 0, 1
Painter = Callable[[ImageDraw.ImageDraw, int], None]
SIZES = (62.0, 92.0)
"""Smallest and largest thing, in pixels."""
APART = 28.0
"""Centres differ by at least this many pixels in x and in y, so that every spatial relation is clear."""

# Strokes of the digits on a 4 x 6 grid (x right, y down), drawn as thick polylines.
DIGIT_STROKES: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, 1), (1, 0), (3, 0), (4, 1), (4, 5), (3, 6), (1, 6), (0, 5), (0, 1)),
    ((0.8, 1.4), (2.2, 0), (2.2, 6)),
    ((0, 1), (1, 0), (3, 0), (4, 1), (4, 2.2), (0, 6), (4, 6)),
    ((0, 0), (4, 0), (1.8, 2.4), (3, 2.6), (4, 3.6), (4, 5), (3, 6), (1, 6), (0, 5)),
    ((3, 6), (3, 0), (0, 4), (4.2, 4)),
    ((4, 0), (0, 0), (0, 2.6), (3, 2.6), (4, 3.6), (4, 5), (3, 6), (0, 6)),
    ((3.6, 0), (1.2, 0.6), (0, 3), (0, 5), (1, 6), (3, 6), (4, 5), (4, 4), (3, 3), (0, 3.4)),
    ((0, 0), (4, 0), (1.4, 6)),
    ((1, 3), (0, 2), (0, 1), (1, 0), (3, 0), (4, 1), (4, 2), (3, 3),
     (1, 3), (0, 4), (0, 5), (1, 6), (3, 6), (4, 5), (4, 4), (3, 3)),
    ((4, 2.6), (1, 3), (0, 2), (0, 1), (1, 0), (3, 0), (4, 1), (4, 3), (2.8, 5.4), (0.4, 6)),
)  # fmt: skip


def with_article(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


@dataclass(frozen=True)
class Thing:
    """One thing in a scene: a coloured shape, or a digit on a white card. Centre and size in pixels."""

    kind: str
    colour: str
    digit: int
    x: float
    y: float
    size: float

    @property
    def name(self) -> str:
        return f"the number {self.digit}" if self.kind == NUMBER else with_article(f"{self.colour} {self.kind}")


@dataclass(frozen=True)
class Scene:
    """Things from left to right on a background colour; `seed` draws the small variations of the picture."""

    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    seed: int

    @property
    def shapes(self) -> tuple[Thing, ...]:
        return tuple(t for t in self.things if t.kind != NUMBER)

    @property
    def number(self) -> Thing | None:
        return next((t for t in self.things if t.kind == NUMBER), None)


@dataclass(frozen=True)
class Drawing:
    """pixels [336, 336, 3] uint8; thing [576] int8: which thing a patch shows most of, -1 for background."""

    pixels: NDArray[np.uint8]
    thing: NDArray[np.int8]


def make_scene(split: int, index: int, count: int | None = None, sizes: tuple[float, float] = SIZES) -> Scene:
    """The scene number `index` of a split; `count` fixes how many things it has (1 to 3)."""
    rng = np.random.default_rng((split, index))
    count = count or int(rng.choice((1, 2, 3), p=(0.2, 0.35, 0.45)))
    kinds = _kinds(rng, count)
    measures = rng.uniform(*sizes, count)
    centres = _centres(rng, measures)
    things = tuple(
        Thing(kind, colour, int(rng.integers(10)), x, y, size)
        for (kind, colour), (x, y), size in zip(kinds, centres, measures, strict=True)
    )
    level = rng.uniform(196, 240)
    red, green, blue = (int(v) for v in np.clip(level + rng.normal(0, 7, 3), 180, 238))
    return Scene(tuple(sorted(things, key=lambda t: t.x)), (red, green, blue), int(rng.integers(2**31)))


def _kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Kind and colour of each thing, no two the same: repeats of a shape or a colour are common, so that counting is
    no guess."""
    kinds = [(NUMBER, "black")] if rng.random() < 0.35 else []
    while len(kinds) < count:
        drawn = [k for k in kinds if k[0] != NUMBER]
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(tuple(COLOURS)))
        if drawn and rng.random() < 0.3:
            shape = drawn[-1][0]
        if drawn and rng.random() < 0.3:
            colour = drawn[-1][1]
        if (shape, colour) not in kinds:
            kinds.append((shape, colour))
    return kinds


def _centres(rng: np.random.Generator, sizes: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Places where nothing touches, and any two centres differ clearly in both directions."""
    while True:
        half = sizes / 2 + 4
        points = [tuple(rng.uniform(h, SIDE - h, 2)) for h in half]
        pairs = [(i, j) for i in range(len(points)) for j in range(i)]
        gaps = [(abs(points[i][0] - points[j][0]), abs(points[i][1] - points[j][1]), i, j) for i, j in pairs]
        if all(min(dx, dy) >= APART and max(dx, dy) >= half[i] + half[j] + 6 for dx, dy, i, j in gaps):
            return [(float(x), float(y)) for x, y in points]


def draw(scene: Scene) -> Drawing:
    """Scene -> picture and its patch labels."""
    rng = np.random.default_rng(scene.seed)
    slope = rng.uniform(-8, 8, (2, 3)).astype(np.float32)
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    ground = np.array(scene.background) + ramp[:, None] * slope[0]
    image = Image.fromarray((ground.astype(np.float32)[:, None] + ramp[:, None] * slope[1]).astype(np.uint8))
    cover = np.zeros((len(scene.things), GRID * GRID))
    for i, thing in enumerate(scene.things):
        cover[i] = _paint(image, thing, rng)
    pixels = np.asarray(image)
    if rng.random() < 0.5:
        grain = rng.integers(0, 8, (SIDE, SIDE, 1), dtype=np.uint8)
        pixels = np.maximum(pixels, 8) - grain
    owner = np.where(cover.max(0) > 0.08, cover.argmax(0), -1)
    return Drawing(pixels, owner.astype(np.int8))


def _paint(image: Image.Image, thing: Thing, rng: np.random.Generator) -> NDArray[np.float64]:
    """Paint one thing and return the share of each patch that it covers, [576]."""
    scale, side = 3, int(thing.size)
    mask = Image.new("L", (side * scale, side * scale))
    ink = np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3)
    colour = tuple(int(v) for v in np.clip(ink, 0, 255))
    corner = (round(thing.x - side / 2), round(thing.y - side / 2))
    if thing.kind == NUMBER:
        card = Image.new("RGB", (side, side), (252, 252, 252))
        _stroke_digit(mask, thing.digit)
        card.paste(colour, mask=mask.resize((side, side), Image.Resampling.BOX))
        image.paste(card, corner)
        alpha = Image.new("L", (side, side), 255)
    else:
        PAINTERS[thing.kind](ImageDraw.Draw(mask), side * scale - 1)
        alpha = mask.resize((side, side), Image.Resampling.BOX)
        image.paste(Image.new("RGB", (side, side), colour), corner, alpha)
    whole = Image.new("L", (SIDE, SIDE))
    whole.paste(alpha, corner)
    blocks = np.asarray(whole, dtype=np.float64).reshape(GRID, PATCH, GRID, PATCH)
    return blocks.mean((1, 3)).reshape(-1) / 255


def _stroke_digit(mask: Image.Image, digit: int) -> None:
    side = mask.width
    points = [(side * (0.3 + 0.1 * x), side * (0.14 + 0.12 * y)) for x, y in DIGIT_STROKES[digit]]
    ImageDraw.Draw(mask).line(points, fill=255, width=max(1, int(side * 0.11)), joint="curve")


def _polygon(*points: tuple[float, float]) -> Painter:
    return lambda pen, s: pen.polygon([(x * s, y * s) for x, y in points], fill=255)


def _ring(pen: ImageDraw.ImageDraw, s: int) -> None:
    pen.ellipse((0, 0, s, s), fill=255)
    pen.ellipse((0.27 * s, 0.27 * s, 0.73 * s, 0.73 * s), fill=0)


def _star_points() -> list[tuple[float, float]]:
    radii = (0.52, 0.22)
    turns = [(-math.pi / 2 + math.pi * k / 5, radii[k % 2]) for k in range(10)]
    return [(0.5 + r * math.cos(a), 0.53 + r * math.sin(a)) for a, r in turns]


PAINTERS: dict[str, Painter] = {
    "circle": lambda pen, s: pen.ellipse((0, 0, s, s), fill=255),
    "square": _polygon((0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)),
    "triangle": _polygon((0.5, 0.02), (1.0, 0.95), (0.0, 0.95)),
    "cross": _polygon(
        (0.34, 0), (0.66, 0), (0.66, 0.34), (1, 0.34), (1, 0.66), (0.66, 0.66),
        (0.66, 1), (0.34, 1), (0.34, 0.66), (0, 0.66), (0, 0.34), (0.34, 0.34),
    ),
    "star": _polygon(*_star_points()),
    "ring": _ring,
}  # fmt: skip
