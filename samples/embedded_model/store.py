"""Stage two: features of the training pictures from the frozen tower, on disk, and random subsets of their patches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from prunesid_cli.demo.scenes import GRID, Scene, draw, make_hard_scene, make_scene
from samples.embedded_model.labels import extract_patches
from samples.embedded_model.non_scenes import draw_non_scene
from samples.embedded_model.tower import tower_forward
from samples.embedded_model.workers import Worker

NUM_PATCHES = GRID * GRID
NON_SCENE_INTERVAL = 14
"""One of this many pictures is not a scene."""
SIMPLE_INTERVAL = 3
"""One of this many scenes is simple, and all others are hard."""
ENCODING_BATCH = 16


def is_non_scene(index: int) -> bool:
    """Whether picture `index` of the store is not a scene."""
    return index % NON_SCENE_INTERVAL == NON_SCENE_INTERVAL - 1


def is_hard(index: int) -> bool:
    """Whether the scene of picture `index` of the store is a hard one."""
    return index % SIMPLE_INTERVAL > 0


def store_scene(split: int, index: int) -> Scene:
    """Return the scene of picture `index` of a store."""
    return make_hard_scene(split, index) if is_hard(index) else make_scene(split, index)


@dataclass(frozen=True)
class Store:
    """Features and labels of M pictures.

    Attributes:
        features: Output of the frozen tower, CLS first [M, 577, C].
        parts: Index of the part that each patch shows [M, 576] (see `Scene.parts`); -1 for background.
    """

    features: NDArray[np.float16]
    parts: NDArray[np.int8]

    @classmethod
    def open(cls, folder: Path, mode: Literal["r", "r+"] = "r") -> Store:
        """Map the files of a store into memory."""
        return cls(
            features=np.load(folder / "features.npy", mmap_mode=mode),
            parts=np.load(folder / "parts.npy", mmap_mode=mode),
        )


def create_store(folder: Path, pictures: int, width: int) -> None:
    """Create the files of an empty store."""
    shapes = {
        "features": ((pictures, 1 + NUM_PATCHES, width), np.float16),
        "parts": ((pictures, NUM_PATCHES), np.int8),
    }
    for name, (shape, dtype) in shapes.items():
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=dtype, shape=shape).flush()


def draw_picture(split: int, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int8]]:
    """Return picture `index` of a store and the part that each patch shows [576]; some pictures are not scenes."""
    if is_non_scene(index):
        return draw_non_scene(split, index), np.full(NUM_PATCHES, -1, np.int8)
    drawing = draw(store_scene(split, index))
    return drawing.pixels, drawing.part


@torch.no_grad()
def fill_store(worker: Worker, folder: Path, tower: Any, split: int) -> None:
    """Encode this worker's part of the store. The file `filled.RANK` counts the pictures that are done, to continue."""
    store = Store.open(folder, "r+")
    progress_file = folder / f"filled.{worker.rank}"
    own_indices = range(worker.rank, len(store.parts), worker.count)
    done = int(progress_file.read_text()) if progress_file.exists() else 0
    tower.to(worker.device)
    positions = torch.arange(NUM_PATCHES, device=worker.device).expand(ENCODING_BATCH, -1)
    for start in range(done, len(own_indices), ENCODING_BATCH):
        batch = list(own_indices[start : start + ENCODING_BATCH])
        pictures = [draw_picture(split, index) for index in batch]
        patches = torch.stack([extract_patches(pixels) for pixels, _ in pictures]).to(worker.device)
        with worker.autocast():
            states = tower_forward(tower, patches, positions[: len(batch)])
        store.features[batch] = states.float().cpu().numpy().astype(np.float16)
        store.parts[batch] = np.stack([parts for _, parts in pictures])
        progress_file.write_text(str(start + len(batch)))


def draw_kept_patches(
    parts: NDArray[np.int8], count: int, rng: np.random.Generator, bare: bool = False
) -> NDArray[np.int64]:
    """Draw the patches that are kept in a training step.

    They are, by chance, spread uniformly, in blocks, mostly on things or mostly on background. At least one patch of
    each part is kept, so that every question can be answered.

    Args:
        parts: Index of the part that each patch shows [576]; -1 for background.
        count: Number of patches.
        rng: Source of randomness.
        bare: Whether patches of things are kept before all others.

    Returns:
        Indices of patches [count], ascending.
    """
    is_thing = parts >= 0
    style = int(rng.integers(4))
    preference = np.zeros(NUM_PATCHES)
    if style == 1:
        cells = int(rng.integers(3, 9))
        blocks = rng.normal(0, 3, (cells, cells)).repeat(math.ceil(GRID / cells), 0).repeat(math.ceil(GRID / cells), 1)
        preference = blocks[:GRID, :GRID].reshape(-1)
    elif style >= 2:
        strength = rng.uniform(0.5, 5)
        preference = np.where(is_thing, strength if style == 2 else -strength, 0.0)
    preference = preference + rng.gumbel(size=NUM_PATCHES) + 50.0 * (is_thing & bare)
    for part in np.unique(parts[is_thing]):
        patches = np.flatnonzero(parts == part)
        preference[patches[int(rng.integers(len(patches)))]] += 100
    return np.sort(np.argsort(-preference)[:count])
