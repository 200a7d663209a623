"""Pictures to measure with, where none are given: drawn scenes, enlarged to what a model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene

ANY_SIZE = 672
"""Pixels of a side, for models that read pictures of every size."""
TILES = "image_grid_pinpoints"


def size_of(config: Any) -> tuple[int, int]:
    """Width and height of a picture that a model reads whole, in as many tiles as fill a square twice its tower's."""
    side = getattr(getattr(config, "vision_config", None), "image_size", None) or ANY_SIZE
    side = side if isinstance(side, int) else max(side)
    return (2 * side if getattr(config, TILES, None) else side,) * 2


def draw_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[str]:
    """JPEGs, the same ones each time; their paths."""
    paths = [folder / f"scene{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        scene = Image.fromarray(draw(make_scene(HELD_OUT, number)).pixels)
        scene.resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
    return [str(path) for path in paths]
