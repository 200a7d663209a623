"""Stage one: the vision tower learns to see, from dense labels that cost nothing because we draw the scenes.

Every patch, at the layer that the projector reads, says what it shows (kind, colour, digit), and where the middle of
that thing is; the CLS token, at the same layer, says which things are in the picture. The second is what makes the
attention of CLS, and with it the saliency of tokens, mean something.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesid_cli.demo.build import WIDTH, build_model, clip_tower
from prunesid_cli.demo.scenes import COLOURS, GRID, HELD_OUT, SHAPES, THING_SIZES, TRAIN, Drawing, draw, make_scene
from samples.embedded_model.labels import BACKGROUND, BINS, FOREIGN, KINDS, Labels, labels_of, patches_of
from samples.embedded_model.others import draw_other
from samples.embedded_model.start import open_places, start_tower
from samples.embedded_model.workers import Trainer, Worker


@dataclass(frozen=True)
class Phase:
    """Until `until` (share of all steps): `things` a scene (None: 1 to 3), `tokens` patches seen, `batch` a worker,
    `sizes` of things in pixels."""

    until: float
    things: int | None
    tokens: int
    batch: int
    sizes: tuple[float, float] = THING_SIZES


@dataclass(frozen=True)
class Course:
    """One cosine of the learning rate, from `peak`; pictures are counted from `first`. `centres`: whether patches are
    asked where in the picture their thing is."""

    name: str
    phases: tuple[Phase, ...]
    peak: float
    first: int
    centres: bool = False


WHOLE = Phase(1.0, None, GRID * GRID, 8)
SMALL = (54.0, 84.0)
COURSES = (
    Course(
        "tower",
        (Phase(0.45, 1, 72, 48, SMALL), Phase(0.78, None, 192, 20, SMALL), Phase(1.0, None, GRID * GRID, 8, SMALL)),
        peak=1.5e-3,
        first=0,
    ),
    Course("tower2", (Phase(0.8, None, 160, 24), WHOLE), peak=1e-3, first=10**7),
    Course("tower3", (Phase(0.85, None, 160, 24), WHOLE), peak=8e-4, first=2 * 10**7, centres=True),
)
"""Few patches at first, where most of them show things: 30 times cheaper than whole pictures, which then come last in
each course. The second course has larger things, as all scenes from then on. The third makes the features say where
in the picture a thing is: without it they lose that (a linear probe missed by 4.7 patches), and with it every answer
about places once tokens are dropped and renumbered."""


def tower_forward(tower: Any, patches: Tensor, index: Tensor) -> Tensor:
    """Patches [B, T, 588] at places `index` [B, T] -> states at layer -2, [B, 1 + T, C]: CLS first."""
    embeddings = tower.embeddings
    table = embeddings.position_embedding.weight
    tokens = F.linear(patches, embeddings.patch_embedding.weight.flatten(1)) + table[1:][index]
    cls = (embeddings.class_embedding + table[0]).expand(len(patches), 1, -1)
    states: Tensor = tower.pre_layrnorm(torch.cat([cls, tokens], 1))
    for layer in tower.encoder.layers[:-1]:
        states = layer(states, attention_mask=None)
        states = states[0] if isinstance(states, tuple) else states
    return states


class Heads(nn.Module):
    """The tower and the questions it is asked in training; the questions are thrown away afterwards."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.sizes = (len(KINDS) + 2, len(COLOURS), 10, 3)
        self.norm = nn.LayerNorm(WIDTH)
        self.patch = nn.Linear(WIDTH, sum(self.sizes))
        self.whole = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(SHAPES) * len(COLOURS) + 10 + 4 + 1))
        self.centre = nn.Linear(WIDTH, 2 * BINS)

    def forward(self, patches: Tensor, index: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """-> logits of patches: kind, colour, digit, place, column, row [B, T, ...]; logits of the whole [B, 63]."""
        states = tower_forward(self.tower, patches, index)
        seen = self.norm(states[:, 1:])
        return self.patch(seen).split(self.sizes, -1) + self.centre(seen).split(BINS, -1), self.whole(states[:, 0])


def make_batch(split: int, first: int, phase: Phase, foreign: float = 0.08) -> tuple[Tensor, Tensor, Labels]:
    """Pictures `first`.. of a split -> patches [B, T, 588], index [B, T], labels; things come first."""
    patches, index, rows, whole = [], [], [], []
    for i in range(first, first + phase.batch):
        rng = np.random.default_rng((split, i, 2))
        if rng.random() < foreign:
            scene, drawing = None, Drawing(draw_other(split, i), np.full(GRID * GRID, -1, np.int8))
        else:
            scene = make_scene(split, i, phase.things, phase.sizes)
            drawing = draw(scene)
        seen = np.argsort((drawing.thing < 0) + rng.random(GRID * GRID) * 0.5)[: phase.tokens]
        seen.sort()
        labels, present = labels_of(scene, drawing.thing)
        patches.append(patches_of(drawing.pixels, seen))
        index.append(seen)
        rows.append(labels[seen])
        whole.append(present)
    at = torch.from_numpy(np.stack(index))
    table = torch.from_numpy(np.stack(rows)).float()
    kind, colour, digit = (table[..., c].long() for c in range(3))
    shown = torch.from_numpy(np.stack(whole)).float()
    return torch.stack(patches), at, Labels(kind, colour, digit, table[..., 3:6], table[..., 6:].long(), shown)


def loss_of(answers: tuple[tuple[Tensor, ...], Tensor], labels: Labels, centres: bool) -> Tensor:
    (kind, colour, digit, place, *centre), whole = answers
    weight = torch.ones(len(KINDS) + 2, device=kind.device)
    weight[BACKGROUND] = weight[FOREIGN] = 0.25
    loss = F.cross_entropy(kind.float().flatten(0, 1), labels.kind.flatten(), weight)
    loss = loss + F.cross_entropy(colour.float().flatten(0, 1), labels.colour.flatten(), ignore_index=-1)
    if (labels.digit >= 0).any():
        loss = loss + F.cross_entropy(digit.float().flatten(0, 1), labels.digit.flatten(), ignore_index=-1)
    for axis, told in enumerate(centre if centres else ()):
        loss = loss + F.cross_entropy(told.float().flatten(0, 1), labels.centre[..., axis].flatten(), ignore_index=-1)
    on = labels.kind < BACKGROUND
    loss = loss + 0.5 * F.smooth_l1_loss(place.float()[on], labels.place[on])
    return loss + 5.0 * F.binary_cross_entropy_with_logits(whole.float(), labels.present)


@torch.no_grad()
def score(heads: Any, pictures: int = 160) -> dict[str, float]:
    """Shares of patches read rightly on held-out full pictures, and the recall of CLS at a threshold of one half."""
    right: dict[str, list[Tensor]] = {
        name: [] for name in ("kind", "colour", "digit", "column", "row", "cls_recall", "cls_count")
    }
    device = next(heads.parameters()).device
    for first in range(0, pictures, 8):
        patches, index, labels = make_batch(HELD_OUT, first, WHOLE)
        (kind, colour, digit, _, *centre), whole = heads(patches.to(device), index.to(device))
        on = labels.kind < BACKGROUND
        right["kind"].append((kind.argmax(-1).cpu() == labels.kind)[on])
        right["colour"].append((colour.argmax(-1).cpu() == labels.colour)[labels.colour >= 0])
        right["digit"].append((digit.argmax(-1).cpu() == labels.digit)[labels.digit >= 0])
        for axis, name in enumerate(("column", "row")):
            right[name].append((centre[axis].argmax(-1).cpu() == labels.centre[..., axis])[on])
        present = labels.present[:, :58] > 0
        right["cls_recall"].append((whole[:, :58].cpu() > 0)[present])
        scenes = labels.present[:, 62] > 0
        right["cls_count"].append((whole[:, 58:62].argmax(-1).cpu() == labels.present[:, 58:62].argmax(-1))[scenes])
    return {name: round(torch.cat(parts).float().mean().item(), 4) for name, parts in right.items()}


def new_heads(seed: int) -> Heads:
    """An untrained tower with its eyes open, and the questions that it is asked."""
    torch.manual_seed(seed)
    tower = clip_tower(build_model(seed))
    sample, _, labels = make_batch(TRAIN, 10**9, Phase(0, None, 128, 100, SMALL))
    start_tower(tower, sample[labels.kind < FOREIGN], torch.Generator().manual_seed(seed))
    return Heads(tower)


def load_heads(path: Path) -> Heads:
    heads = Heads(clip_tower(build_model(0)))
    heads.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["module"])
    return heads


def train_tower(worker: Worker, folder: Path, seed: int, steps: int, number: int) -> None:
    """One of COURSES; leaves NAME.pt (a checkpoint of `Heads`) and NAME.jsonl (its progress) in `folder`."""
    course = COURSES[number]
    heads = load_heads(folder / f"{COURSES[number - 1].name}.pt") if number else new_heads(seed)
    if course.centres:
        open_places(heads)
    trainer = Trainer(worker, heads, folder / f"{course.name}.pt", steps, course.peak)
    began, log = time.monotonic(), folder / f"{course.name}.jsonl"
    while trainer.step < steps:
        phase = next(p for p in course.phases if trainer.step < p.until * steps)
        first = (trainer.step * worker.count + worker.rank) * 64 + course.first + seed * 10**8
        patches, index, labels = make_batch(TRAIN, first, phase)
        worker.choose_attention(heads.tower, phase.tokens)
        moved = Labels(*(getattr(labels, f).to(worker.device) for f in Labels.__dataclass_fields__))
        with worker.autocast():
            answers = trainer.module(patches.to(worker.device), index.to(worker.device))
        loss = loss_of(answers, moved, course.centres)
        trainer.update(loss)
        if worker.leads and (trainer.step % 50 == 0 or trainer.step == steps):
            line = {"step": trainer.step, "loss": round(loss.item(), 4), "seconds": round(time.monotonic() - began)}
            if trainer.step % 500 == 0 or trainer.step == steps:
                line |= score(trainer.module, 40 if trainer.step < steps else 160)
            with log.open("a") as out:
                print(json.dumps(line), file=out)
