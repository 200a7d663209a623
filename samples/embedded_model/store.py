"""Stage two: what the frozen tower sees of the training pictures, on disk, and which part of it a step looks at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from prunesid_cli.demo.scenes import GRID, draw, make_scene
from samples.embedded_model.labels import patches_of
from samples.embedded_model.others import draw_other
from samples.embedded_model.tower import tower_forward
from samples.embedded_model.workers import Worker

N = GRID * GRID
FOREIGN_EVERY = 14
"""One picture in so many of the store is no scene."""


def is_foreign(index: int) -> bool:
    return index % FOREIGN_EVERY == FOREIGN_EVERY - 1


@dataclass(frozen=True)
class Store:
    """What the frozen tower sees: features [M, 577, C] fp16 (CLS first) and things [M, 576] int8 (-1: background)."""

    features: NDArray[np.float16]
    things: NDArray[np.int8]

    @classmethod
    def open(cls, folder: Path, mode: Literal["r", "r+"] = "r") -> Store:
        names = [folder / f"{name}.npy" for name in ("features", "things")]
        return cls(*(np.load(name, mmap_mode=mode) for name in names))


def create_store(folder: Path, pictures: int, width: int) -> None:
    shapes = {"features": ((pictures, 1 + N, width), np.float16), "things": ((pictures, N), np.int8)}
    for name, (shape, dtype) in shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=dtype, shape=shape).flush()


def picture(split: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Picture `index` of a split and its patch labels; some are no scenes."""
    if is_foreign(index):
        return draw_other(split, index), np.full(N, -1, np.int8)
    drawing = draw(make_scene(split, index))
    return drawing.pixels, drawing.thing


@torch.no_grad()
def fill_store(worker: Worker, folder: Path, tower: Any, split: int) -> None:
    """Encode this worker's share of the store; a `filled.RANK` file says how far it came, so that it can go on."""
    store = Store.open(folder, "r+")
    mark = folder / f"filled.{worker.rank}"
    mine = range(worker.rank, len(store.things), worker.count)
    done = int(mark.read_text()) if mark.exists() else 0
    tower.to(worker.device)
    index = torch.arange(N, device=worker.device).expand(16, -1)
    for at in range(done, len(mine), 16):
        part = list(mine[at : at + 16])
        drawn = [picture(split, i) for i in part]
        patches = torch.stack([patches_of(pixels) for pixels, _ in drawn]).to(worker.device)
        with worker.autocast():
            states = tower_forward(tower, patches, index[: len(part)])
        store.features[part] = states.float().cpu().numpy().astype(np.float16)
        store.things[part] = np.stack([things for _, things in drawn])
        mark.write_text(str(at + len(part)))


def keep_some(things: NDArray[np.int8], count: int, rng: np.random.Generator, bare: bool = False) -> NDArray[np.int64]:
    """Which `count` of the 576 patches are left, ascending: one of four compositions, drawn at random.

    Every thing of the scene leaves at least one patch, so that no question is about what cannot be seen.
    """
    on = things >= 0
    style = int(rng.integers(4))
    liking = np.zeros(N)
    if style == 1:
        cells = int(rng.integers(3, 9))
        blocks = rng.normal(0, 3, (cells, cells)).repeat(math.ceil(GRID / cells), 0).repeat(math.ceil(GRID / cells), 1)
        liking = blocks[:GRID, :GRID].reshape(-1)
    elif style >= 2:
        push = rng.uniform(0.5, 5)
        liking = np.where(on, push if style == 2 else -push, 0.0)
    liking = liking + rng.gumbel(size=N) + 50.0 * (on & bare)
    for thing in np.unique(things[on]):
        patches = np.flatnonzero(things == thing)
        liking[patches[int(rng.integers(len(patches)))]] += 100
    return np.sort(np.argsort(-liking)[:count])
