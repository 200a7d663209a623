"""Before the language model learns, the projector alone learns to say in its words what each patch shows.

As in LLaVA's own first stage, but densely, since we know what every patch shows: a visual token begins as the sum of
the words for the kind, the colour or the digit, and the place of its thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesid_cli.demo.build import WIDTH
from prunesid_cli.demo.scenes import NUMBER, SIDE, TRAIN, Thing, make_scene
from samples.embedded_model.store import Store, is_foreign

ANCHORS = 8
"""Columns, and rows, whose codes are mixed to tell a place."""
BACKGROUNDS = 12
"""Patches without a thing that are taken of each picture."""


def align_projector(
    projector: Any, table: Tensor, word: Callable[[str], int], store: Store, seed: int, pictures: int = 1500
) -> None:
    """Fit an untrained projector to the sums of words that describe patches.

    Args:
        projector: `linear_1`, GELU, `linear_2`.
        table: the language model's word embeddings [V, C]; what they all share is left out.
        word: the row of a word in that table.
    """
    generator = torch.Generator().manual_seed(seed)
    seen, said = _described(store, Words(table.detach() - table.detach().mean(0), word, generator), pictures, seed)
    mean, scale = seen.mean(0), seen.std(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    net = nn.Sequential(first, nn.GELU(), second)
    steps = 1000
    optimiser = torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(steps):
        at = torch.randint(len(seen), (2048,), generator=generator)
        loss = (net((seen[at] - mean) / scale) - said[at]).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        projector.linear_1.weight.copy_(first.weight / scale)
        projector.linear_1.bias.copy_(first.bias - projector.linear_1.weight @ mean)
        projector.linear_2.load_state_dict(second.state_dict())


class Words:
    """What is said of a patch, as vectors [C]."""

    def __init__(self, table: Tensor, word: Callable[[str], int], generator: torch.Generator) -> None:
        def code(*shape: int) -> Tensor:
            return torch.randn(*shape, WIDTH, generator=generator) * table.std()

        self.of: Callable[[str], Tensor] = lambda name: table[word(name)]
        self.columns, self.rows = code(ANCHORS), code(ANCHORS)
        self.background, self.foreign = code(2)

    def thing(self, thing: Thing) -> Tensor:
        second = str(thing.digit) if thing.kind == NUMBER else thing.colour
        place = self._along(self.columns, thing.x, "left", "right") + self._along(self.rows, thing.y, "top", "bottom")
        return self.of(thing.kind) + self.of(second) + place

    def _along(self, codes: Tensor, centre: float, first: str, last: str) -> Tensor:
        """A code that changes smoothly with the place, and the word for the outer thirds."""
        low, share = divmod(centre / SIDE * (ANCHORS - 1), 1)
        smooth = torch.lerp(codes[int(low)], codes[int(low) + 1], share)
        outer = (first, None, last)[int(3 * centre / SIDE)]
        return smooth + self.of(outer) if outer else smooth


def _described(store: Store, words: Words, pictures: int, seed: int) -> tuple[Tensor, Tensor]:
    """-> features of patches [M, C] and what is said of them [M, C]."""
    rng = np.random.default_rng(seed)
    seen, said = [], []
    for i in range(min(pictures, len(store.things))):
        things = store.things[i]
        empty = rng.permutation(np.flatnonzero(things < 0))[:BACKGROUNDS]
        patches = np.concatenate([np.flatnonzero(things >= 0), empty])
        names = [] if is_foreign(i) else [words.thing(thing) for thing in make_scene(TRAIN, i).things]
        nothing = words.foreign if is_foreign(i) else words.background
        seen.append(torch.from_numpy(store.features[i][1 + patches]).float())
        said.append(torch.stack([*names, nothing])[things[patches]])
    return torch.cat(seen), torch.cat(said)
