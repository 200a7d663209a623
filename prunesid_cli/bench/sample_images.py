"""Images to measure with if none are given: drawn scenes, enlarged to what a model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene

DEFAULT_SIDE = 672
"""Side in pixels for models that read images of any size."""


def image_size_for(config: Any) -> tuple[int, int]:
    """Return the width and height of an image that a model reads completely.

    For models that read tiles, it is a square of twice the side of the tower's input.
    """
    side = getattr(getattr(config, "vision_config", None), "image_size", None) or DEFAULT_SIDE
    if not isinstance(side, int):
        side = max(side)
    if getattr(config, "image_grid_pinpoints", None):
        side *= 2
    return side, side


def write_scenes(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """Write `count` scenes as JPEG, the same ones in every run, and return their paths."""
    paths = []
    for number in range(count):
        path = folder / f"scene{number}.jpg"
        scene = Image.fromarray(draw(make_scene(HELD_OUT, number)).pixels)
        scene.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(str(path))
    return paths
