"""Drawn scenes: coloured shapes and written numbers on a ground, with a label of what each patch shows.

Simple scenes have one to three large things and a number of one digit on a pale ground. Hard scenes have two to six
things, most of them small, numbers of up to three digits, and mostly a textured or cluttered ground. A scene is a pure
function of (split, index): training scenes and held-out scenes are separate streams, and any scene can be drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from prunesid_cli.demo.grounds import GROUNDS, log_uniform

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
"""Draws a shape into a square mask with a side in pixels."""
THING_SIZES = (62.0, 92.0)
"""Smallest and largest side of a thing, in pixels."""
HARD_SIZES, NUMBER_SIZES = (26.0, 76.0), (40.0, 60.0)
"""Smallest and largest side of a shape, and height of a number, in a hard scene, in pixels."""
MIN_CENTRE_DISTANCE, HARD_CENTRE_DISTANCE = 28.0, 22.0
"""Least distance of two centres, in pixels, in x and in y: it makes every spatial relation clear."""
DIGIT_PITCH = 0.6
"""Distance of two digits of a number, as a share of its height."""
MIN_COVER = 0.08
"""Share of a patch that a thing must cover to be its label."""

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
    """Return "a star" for "star", "an orange star" for "orange star"."""
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"


@dataclass(frozen=True)
class Thing:
    """One thing in a scene: a coloured shape, or a number on a white card.

    Attributes:
        kind: A name of `SHAPES`, or `NUMBER`.
        colour: A name of `COLOURS`.
        value: The number that is written; has no meaning for shapes.
        x: Centre, in pixels from the left.
        y: Centre, in pixels from the top.
        size: Height in pixels.
    """

    kind: str
    colour: str
    value: int
    x: float
    y: float
    size: float

    @property
    def name(self) -> str:
        return f"the number {self.value}" if self.kind == NUMBER else with_article(f"{self.colour} {self.kind}")

    @property
    def digits(self) -> tuple[int, ...]:
        """The digits that are written, from left to right; none for a shape."""
        return tuple(int(digit) for digit in str(self.value)) if self.kind == NUMBER else ()

    @property
    def width(self) -> float:
        """Width in pixels: a card is as high as wide for one digit, and wider for more."""
        return self.size * (1 + DIGIT_PITCH * max(0, len(self.digits) - 1))


@dataclass(frozen=True)
class Scene:
    """A scene.

    Attributes:
        things: The things from left to right.
        background: RGB.
        seed: Seed of small variations of the picture.
        ground: A name of `grounds.GROUNDS`.
    """

    things: tuple[Thing, ...]
    background: tuple[int, int, int]
    seed: int
    ground: str = "plain"

    @property
    def shapes(self) -> tuple[Thing, ...]:
        """The things that are no number."""
        return tuple(thing for thing in self.things if thing.kind != NUMBER)

    @property
    def parts(self) -> tuple[Thing, ...]:
        """What must be seen to know the scene: its shapes, and each digit of a number as a thing of its own."""
        parts: list[Thing] = []
        for thing in self.things:
            middle = (len(thing.digits) - 1) / 2
            parts += [
                replace(thing, value=digit, x=thing.x + DIGIT_PITCH * thing.size * (number - middle))
                for number, digit in enumerate(thing.digits)
            ] or [thing]
        return tuple(parts)

    @property
    def number(self) -> Thing | None:
        return next((thing for thing in self.things if thing.kind == NUMBER), None)


@dataclass(frozen=True)
class Drawing:
    """A picture of a scene.

    Attributes:
        pixels: [336, 336, 3].
        part: Index of the part (see `Scene.parts`) that a patch shows [576]; -1 for background.
    """

    pixels: NDArray[np.uint8]
    part: NDArray[np.int8]


def make_scene(split: int, index: int, count: int | None = None, sizes: tuple[float, float] = THING_SIZES) -> Scene:
    """Return a simple scene.

    Args:
        split: `TRAIN`, `HELD_OUT` or any other number.
        index: Number of the scene in the split.
        count: Number of things, 1 to 3; None: drawn at random.
        sizes: Smallest and largest side of a thing, in pixels.
    """
    rng = np.random.default_rng((split, index))
    count = count or int(rng.choice((1, 2, 3), p=(0.2, 0.35, 0.45)))
    kinds = _kinds(rng, count)
    drawn_sizes = rng.uniform(*sizes, count)
    centres = _centres(rng, drawn_sizes)
    things = tuple(
        Thing(kind, colour, int(rng.integers(10)), x, y, size)
        for (kind, colour), (x, y), size in zip(kinds, centres, drawn_sizes, strict=True)
    )
    level = rng.uniform(196, 240)
    red, green, blue = (int(value) for value in np.clip(level + rng.normal(0, 7, 3), 180, 238))
    return Scene(tuple(sorted(things, key=lambda thing: thing.x)), (red, green, blue), int(rng.integers(2**31)))


def make_hard_scene(split: int, index: int) -> Scene:
    """Return a hard scene; see `make_scene` for the arguments."""
    rng = np.random.default_rng((split, index, 3))
    count = int(rng.choice((2, 3, 4, 5, 6), p=(0.15, 0.25, 0.25, 0.2, 0.15)))
    kinds = _kinds(rng, count)
    # Ratios of sizes are spread evenly, so most things are small.
    sizes = [rng.uniform(*NUMBER_SIZES) if kind == NUMBER else log_uniform(rng, *HARD_SIZES) for kind, _ in kinds]
    values = [int(rng.integers(10 ** int(rng.integers(1, 4)))) for _ in kinds]
    things = [Thing(*kind, value, 0, 0, size) for kind, value, size in zip(kinds, values, sizes, strict=True)]
    placed = [replace(thing, x=x, y=y) for thing, (x, y) in zip(things, _spread(rng, things), strict=True)]
    level = rng.uniform(170, 235)
    red, green, blue = (int(value) for value in np.clip(level + rng.normal(0, 12, 3), 150, 240))
    ground = str(rng.choice(tuple(GROUNDS), p=(0.16, 0.42, 0.42)))
    ordered = tuple(sorted(placed, key=lambda thing: thing.x))
    return Scene(ordered, (red, green, blue), int(rng.integers(2**31)), ground)


def _spread(rng: np.random.Generator, things: Sequence[Thing]) -> list[tuple[float, float]]:
    """Centres such that no things touch, and any two differ clearly in x and in y, for many things.

    With six things, one draw of `_centres` in thousands would fit. So the gaps are drawn, and then which thing has
    which place.
    """
    count = len(things)
    margin = max(thing.width for thing in things) / 2 + 4
    room = SIDE - 2 * margin - (count - 1) * HARD_CENTRE_DISTANCE
    while True:
        x, y = (
            margin + np.sort(rng.uniform(0, room, count)) + HARD_CENTRE_DISTANCE * np.arange(count) for _ in range(2)
        )
        y = rng.permutation(y)
        order = rng.permutation(count)
        points = [(float(x[at]), float(y[at])) for at in order]
        pairs = [(i, j) for i in range(count) for j in range(i)]
        if all(_are_apart(things[i], things[j], points[i], points[j]) for i, j in pairs):
            return points


def _are_apart(first: Thing, second: Thing, at: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether there are six pixels between two things."""
    apart_x = abs(at[0] - other[0]) >= (first.width + second.width) / 2 + 6
    return apart_x or abs(at[1] - other[1]) >= (first.size + second.size) / 2 + 6


def _kinds(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Kind and colour of each thing, no two the same. Shapes and colours often repeat, so that counting is no guess."""
    kinds = [(NUMBER, "black")] if rng.random() < 0.35 else []
    while len(kinds) < count:
        shapes = [(kind, colour) for kind, colour in kinds if kind != NUMBER]
        shape, colour = str(rng.choice(SHAPES)), str(rng.choice(tuple(COLOURS)))
        if shapes and rng.random() < 0.3:
            shape = shapes[-1][0]
        if shapes and rng.random() < 0.3:
            colour = shapes[-1][1]
        if (shape, colour) not in kinds:
            kinds.append((shape, colour))
    return kinds


def _centres(rng: np.random.Generator, sizes: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Centres such that no things touch, and any two differ clearly in x and in y."""
    while True:
        half = sizes / 2 + 4
        points = [tuple(rng.uniform(margin, SIDE - margin, 2)) for margin in half]
        pairs = [(i, j) for i in range(len(points)) for j in range(i)]
        gaps = [(abs(points[i][0] - points[j][0]), abs(points[i][1] - points[j][1]), i, j) for i, j in pairs]
        if all(min(dx, dy) >= MIN_CENTRE_DISTANCE and max(dx, dy) >= half[i] + half[j] + 6 for dx, dy, i, j in gaps):
            return [(float(x), float(y)) for x, y in points]


def draw(scene: Scene) -> Drawing:
    """Draw a scene and label its patches."""
    rng = np.random.default_rng(scene.seed)
    slope = rng.uniform(-8, 8, (2, 3)).astype(np.float32)
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    ground = np.array(scene.background) + ramp[:, None] * slope[0]
    pixels = ground.astype(np.float32)[:, None] + ramp[:, None] * slope[1]
    image = GROUNDS[scene.ground](pixels, np.random.default_rng((scene.seed, 1)))
    cover = np.stack([_paint(image, thing, rng) for thing in scene.things])
    pixels = np.asarray(image)
    if rng.random() < 0.5:
        grain = rng.integers(0, 8, (SIDE, SIDE, 1), dtype=np.uint8)
        pixels = np.maximum(pixels, 8) - grain
    thing = np.where(cover.max(0) > MIN_COVER, cover.argmax(0), -1)
    return Drawing(pixels, _split_numbers(scene, thing).astype(np.int8))


def _split_numbers(scene: Scene, thing: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index of the thing that each patch shows [576] -> index of the part: of a number, the nearest digit."""
    parts, part, first = scene.parts, thing.copy(), 0
    patch_x = (np.arange(GRID * GRID) % GRID + 0.5) * PATCH
    for index, one in enumerate(scene.things):
        count = max(1, len(one.digits))
        distances = np.abs([patch_x - digit.x for digit in parts[first : first + count]])
        part = np.where(thing == index, first + distances.argmin(0), part)
        first += count
    return part


def _paint(image: Image.Image, thing: Thing, rng: np.random.Generator) -> NDArray[np.float64]:
    """Paint one thing, and return the share of each patch that it covers [576]."""
    scale, side, width = 3, int(thing.size), int(thing.width)  # drawn larger and reduced, for smooth edges
    mask = Image.new("L", (width * scale, side * scale))
    ink = np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3)
    colour = tuple(int(value) for value in np.clip(ink, 0, 255))
    corner = (round(thing.x - width / 2), round(thing.y - side / 2))
    if thing.kind == NUMBER:
        card = Image.new("RGB", (width, side), (252, 252, 252))
        for number, digit in enumerate(thing.digits):
            _stroke_digit(mask, digit, number * DIGIT_PITCH)
        card.paste(colour, mask=mask.resize((width, side), Image.Resampling.BOX))
        image.paste(card, corner)
        alpha = Image.new("L", (width, side), 255)
    else:
        PAINTERS[thing.kind](ImageDraw.Draw(mask), side * scale - 1)
        alpha = mask.resize((side, side), Image.Resampling.BOX)
        image.paste(Image.new("RGB", (side, side), colour), corner, alpha)
    coverage = Image.new("L", (SIDE, SIDE))
    coverage.paste(alpha, corner)
    blocks = np.asarray(coverage, dtype=np.float64).reshape(GRID, PATCH, GRID, PATCH)
    return blocks.mean((1, 3)).reshape(-1) / 255


def _stroke_digit(mask: Image.Image, digit: int, offset: float) -> None:
    """Draw a digit, moved to the right by a share of its height."""
    side = mask.height
    points = [(side * (0.3 + offset + 0.1 * x), side * (0.14 + 0.12 * y)) for x, y in DIGIT_STROKES[digit]]
    ImageDraw.Draw(mask).line(points, fill=255, width=max(1, int(side * 0.11)), joint="curve")


def _polygon(*points: tuple[float, float]) -> Painter:
    return lambda pen, side: pen.polygon([(x * side, y * side) for x, y in points], fill=255)


def _ring(pen: ImageDraw.ImageDraw, side: int) -> None:
    pen.ellipse((0, 0, side, side), fill=255)
    pen.ellipse((0.27 * side, 0.27 * side, 0.73 * side, 0.73 * side), fill=0)


def _star_points() -> list[tuple[float, float]]:
    radii = (0.52, 0.22)
    turns = [(-math.pi / 2 + math.pi * k / 5, radii[k % 2]) for k in range(10)]
    return [(0.5 + r * math.cos(a), 0.53 + r * math.sin(a)) for a, r in turns]


PAINTERS: dict[str, Painter] = {
    "circle": lambda pen, side: pen.ellipse((0, 0, side, side), fill=255),
    "square": _polygon((0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)),
    "triangle": _polygon((0.5, 0.02), (1.0, 0.95), (0.0, 0.95)),
    "cross": _polygon(
        (0.34, 0), (0.66, 0), (0.66, 0.34), (1, 0.34), (1, 0.66), (0.66, 0.66),
        (0.66, 1), (0.34, 1), (0.34, 0.66), (0, 0.66), (0, 0.34), (0.34, 0.34),
    ),
    "star": _polygon(*_star_points()),
    "ring": _ring,
}  # fmt: skip
