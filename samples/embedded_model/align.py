"""Alignment of the projector with the language model's words, before the language model is trained.

This is LLaVA's first stage with dense labels, since it is known what each patch shows: a visual token starts as the sum
of the embeddings of the words for the kind, the colour or digit, and the place of its thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunesid_cli.demo.build import WIDTH
from prunesid_cli.demo.scenes import NUMBER, SIDE, TRAIN, Thing
from samples.embedded_model.labels import extract_patches
from samples.embedded_model.store import (
    NUM_PATCHES,
    SIMPLE_INTERVAL,
    Store,
    draw_picture,
    is_non_scene,
    store_scene,
)
from samples.embedded_model.tower import tower_forward

NUM_ANCHORS = 8
"""Columns, and rows, with a code of their own; the code of a place is interpolated between them."""
BACKGROUND_PATCHES = 12
"""Patches without a thing that are used of each picture."""
STEPS, BATCH_SIZE, LEARNING_RATE = 1000, 2048, 4e-3


def align_projector(
    projector: Any, table: Tensor, word: Callable[[str], int], store: Store, seed: int, pictures: int = 1500
) -> None:
    """Fit an untrained projector to the sums of words that describe patches.

    Args:
        projector: The projector: `linear_1`, GELU, `linear_2`.
        table: Word embeddings of the language model [V, C]. Their mean is subtracted.
        word: Word -> its row in the table.
        store: Features and labels of pictures.
        seed: Seed.
        pictures: Number of pictures to fit on.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = WordTargets(table.detach() - table.detach().mean(0), word, generator)
    _fit(projector, *_make_examples(store, targets, pictures, seed), generator, seed)


@torch.no_grad()
def refit_projector(projector: Any, old_tower: Any, store: Store, seed: int, pictures: int = 700) -> None:
    """Fit a projector that was trained on another tower to the tower of a store: its tokens stay what they were.

    Args:
        projector: The projector.
        old_tower: The tower that it was trained on, which knows only simple scenes.
        store: Features of the new tower.
        seed: Seed.
        pictures: Number of simple pictures to fit on.
    """
    rng, positions = np.random.default_rng(seed), torch.arange(NUM_PATCHES)[None]
    features, wanted = [], []
    for index in range(0, min(SIMPLE_INTERVAL * pictures, len(store.parts)), SIMPLE_INTERVAL):
        patches = _choose_patches(store.parts[index], rng)
        pixels, _ = draw_picture(TRAIN, index)
        states = tower_forward(old_tower, extract_patches(pixels)[None], positions)[0, 1 + patches]
        wanted.append(projector(states))
        features.append(torch.from_numpy(store.features[index][1 + patches]).float())
    with torch.enable_grad():
        _fit(projector, torch.cat(features), torch.cat(wanted), torch.Generator().manual_seed(seed), seed)


def _fit(projector: Any, features: Tensor, wanted: Tensor, generator: torch.Generator, seed: int) -> None:
    """Fit a projector to features [M, C] of patches and the tokens that they should become [M, C]."""
    mean, scale = features.mean(0), features.std(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    net = nn.Sequential(first, nn.GELU(), second)
    optimiser = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(features), (BATCH_SIZE,), generator=generator)
        loss = (net((features[rows] - mean) / scale) - wanted[rows]).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():  # the normalisation becomes part of the first layer
        projector.linear_1.weight.copy_(first.weight / scale)
        projector.linear_1.bias.copy_(first.bias - projector.linear_1.weight @ mean)
        projector.linear_2.load_state_dict(second.state_dict())


class WordTargets:
    """Target of each patch: the sum of the embeddings of the words that describe it [C].

    Args:
        table: Word embeddings [V, C] with mean 0.
        word: Word -> its row in the table.
        generator: Draws codes for places, background and pictures that are not scenes.
    """

    def __init__(self, table: Tensor, word: Callable[[str], int], generator: torch.Generator) -> None:
        def code(*shape: int) -> Tensor:
            return torch.randn(*shape, WIDTH, generator=generator) * table.std()

        self._table, self._word = table, word
        self.columns, self.rows = code(NUM_ANCHORS), code(NUM_ANCHORS)
        self.background, self.non_scene = code(2)

    def of_thing(self, thing: Thing) -> Tensor:
        """Return the target of patches that show a thing, or one digit of a number."""
        second = str(thing.value) if thing.kind == NUMBER else thing.colour
        column = self._place(self.columns, thing.x, "left", "right")
        row = self._place(self.rows, thing.y, "top", "bottom")
        return self._embedding(thing.kind) + self._embedding(second) + (column + row)

    def _embedding(self, word: str) -> Tensor:
        return self._table[self._word(word)]

    def _place(self, codes: Tensor, centre: float, first: str, last: str) -> Tensor:
        """A code that changes smoothly with the place, plus the word for it in the outer thirds."""
        low, share = divmod(centre / SIDE * (NUM_ANCHORS - 1), 1)
        smooth = torch.lerp(codes[int(low)], codes[int(low) + 1], share)
        word = (first, None, last)[int(3 * centre / SIDE)]
        return smooth + self._embedding(word) if word else smooth


def _choose_patches(parts: NDArray[np.int8], rng: np.random.Generator) -> NDArray[np.int64]:
    """All patches of a picture that show a part, and some that show none."""
    empty = rng.permutation(np.flatnonzero(parts < 0))[:BACKGROUND_PATCHES]
    return np.concatenate([np.flatnonzero(parts >= 0), empty])


def _make_examples(store: Store, targets: WordTargets, pictures: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features of patches [M, C] and their targets [M, C]."""
    rng = np.random.default_rng(seed)
    features, sums = [], []
    for index in range(min(pictures, len(store.parts))):
        parts = store.parts[index]
        patches = _choose_patches(parts, rng)
        if is_non_scene(index):
            thing_targets, empty_target = [], targets.non_scene
        else:
            thing_targets = [targets.of_thing(thing) for thing in store_scene(TRAIN, index).parts]
            empty_target = targets.background
        features.append(torch.from_numpy(store.features[index][1 + patches]).float())
        # Patches without a thing have the index -1: the last row.
        sums.append(torch.stack([*thing_targets, empty_target])[parts[patches]])
    return torch.cat(features), torch.cat(sums)
