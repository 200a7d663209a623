"""Courses of the vision tower's training."""

from __future__ import annotations

from dataclasses import dataclass

from prunesid_cli.demo.scenes import GRID, THING_SIZES


@dataclass(frozen=True)
class Phase:
    """A part of a course.

    Attributes:
        until: Share of the course's steps at which it ends.
        things: Things per scene; None: 1 to 3.
        tokens: Patches per picture.
        batch: Pictures per step and worker.
        sizes: Smallest and largest side of a thing in simple scenes, in pixels.
        hard_share: Share of hard scenes.
    """

    until: float
    things: int | None
    tokens: int
    batch: int
    sizes: tuple[float, float] = THING_SIZES
    hard_share: float = 0.0


@dataclass(frozen=True)
class TowerCourse:
    """A run with one cosine of the learning rate, from the weights of the course before it.

    Attributes:
        name: Name of its files.
        phases: Its phases.
        peak: Highest learning rate.
        first: Number of its first picture.
        with_centres: Whether patches predict the centre of their thing in the picture.
    """

    name: str
    phases: tuple[Phase, ...]
    peak: float
    first: int
    with_centres: bool = False


FULL_PICTURES = Phase(1.0, None, GRID * GRID, 8)
SMALL_THINGS = (54.0, 84.0)
COURSES = (
    TowerCourse(
        "tower",
        (
            Phase(0.45, 1, 72, 48, SMALL_THINGS),
            Phase(0.78, None, 192, 20, SMALL_THINGS),
            Phase(1.0, None, GRID * GRID, 8, SMALL_THINGS),
        ),
        peak=1.5e-3,
        first=0,
    ),
    TowerCourse("tower2", (Phase(0.8, None, 160, 24), FULL_PICTURES), peak=1e-3, first=10**7),
    TowerCourse("tower3", (Phase(0.85, None, 160, 24), FULL_PICTURES), peak=8e-4, first=2 * 10**7, with_centres=True),
    TowerCourse(
        "tower4",
        (Phase(0.8, None, 112, 24, hard_share=0.75), Phase(1.0, None, GRID * GRID, 8, hard_share=0.75)),
        peak=1e-3,
        first=3 * 10**7,
        with_centres=True,
    ),
)
"""Courses start with few patches, and most of them show things: these steps are 30 times cheaper than steps on full
pictures, which come last in each course. From the second course on, things are larger, as in all other scenes. The
third makes the features encode where in the picture a thing is. Without it they lose that (the error of a linear probe
was 4.7 patches), and with it all answers about places once tokens are dropped and renumbered."""
