"""Stage one: training of the vision tower on dense labels, which are free because the scenes are drawn.

At the layer that the projector reads, each patch predicts what it shows (kind, colour, digit) and where the centre of
that thing is. The CLS token predicts which things are in the picture, which makes its attention, and with it the
saliency of tokens, meaningful.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesid_cli.demo.build import WIDTH, build_model, clip_tower
from prunesid_cli.demo.scenes import COLOURS, GRID, HELD_OUT, TRAIN, Drawing, draw, make_hard_scene, make_scene
from samples.embedded_model.initialization import add_position_channels, initialize_tower
from samples.embedded_model.labels import (
    BACKGROUND,
    FIRST_COUNT,
    IS_SCENE,
    KINDS,
    NON_SCENE,
    NUM_BINS,
    NUM_PICTURE_LABELS,
    Labels,
    extract_patches,
    label_patches,
)
from samples.embedded_model.non_scenes import draw_non_scene
from samples.embedded_model.tower_courses import COURSES, FULL_PICTURES, SMALL_THINGS, Phase
from samples.embedded_model.workers import Trainer, Worker

NEW_HEADS_STEPS = 120
"""Steps in which only new heads learn."""


def tower_forward(tower: Any, patches: Tensor, index: Tensor) -> Tensor:
    """Run the tower on some of the patches of pictures.

    Args:
        tower: The tower.
        patches: Patches [B, T, 588].
        index: Their positions in the picture [B, T].

    Returns:
        States at layer -2, CLS first [B, 1 + T, C].
    """
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
    """The tower with linear heads for its labels. The heads are only used in training.

    Args:
        tower: The tower.
    """

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.sizes = (len(KINDS) + 2, len(COLOURS), 10, 3)
        self.norm = nn.LayerNorm(WIDTH)
        self.patch = nn.Linear(WIDTH, sum(self.sizes))
        self.picture = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, NUM_PICTURE_LABELS))
        self.centre = nn.Linear(WIDTH, 2 * NUM_BINS)

    def forward(self, patches: Tensor, index: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return logits of patches (kind, colour, digit, place, column, row) [B, T, ...], and of pictures [B, 66]."""
        states = tower_forward(self.tower, patches, index)
        features = self.norm(states[:, 1:])
        patch_logits = self.patch(features).split(self.sizes, -1) + self.centre(features).split(NUM_BINS, -1)
        return patch_logits, self.picture(states[:, 0])


def make_batch(split: int, first: int, phase: Phase, non_scene_share: float = 0.08) -> tuple[Tensor, Tensor, Labels]:
    """Draw pictures and some of their patches, those with things first.

    Args:
        split: Split of the scenes.
        first: Number of the first picture.
        phase: Size of the batch.
        non_scene_share: Share of pictures that are not scenes.

    Returns:
        Patches [B, T, 588], their positions in the picture [B, T], and their labels.
    """
    patches, index, rows, present = [], [], [], []
    for number in range(first, first + phase.batch):
        rng = np.random.default_rng((split, number, 2))
        if rng.random() < non_scene_share:
            scene, drawing = None, Drawing(draw_non_scene(split, number), np.full(GRID * GRID, -1, np.int8))
        else:
            is_hard = rng.random() < phase.hard_share
            scene = make_hard_scene(split, number) if is_hard else make_scene(split, number, phase.things, phase.sizes)
            drawing = draw(scene)
        chosen = np.argsort((drawing.part < 0) + rng.random(GRID * GRID) * 0.5)[: phase.tokens]
        chosen.sort()
        patch_labels, picture_labels = label_patches(scene, drawing.part)
        patches.append(extract_patches(drawing.pixels, chosen))
        index.append(chosen)
        rows.append(patch_labels[chosen])
        present.append(picture_labels)
    table = torch.from_numpy(np.stack(rows)).float()
    labels = Labels(
        kind=table[..., 0].long(),
        colour=table[..., 1].long(),
        digit=table[..., 2].long(),
        place=table[..., 3:6],
        centre=table[..., 6:].long(),
        present=torch.from_numpy(np.stack(present)).float(),
    )
    return torch.stack(patches), torch.from_numpy(np.stack(index)), labels


def tower_loss(logits: tuple[tuple[Tensor, ...], Tensor], labels: Labels, with_centres: bool) -> Tensor:
    """Return the sum of the losses of all labels; those that do not apply to a patch are left out."""
    (kind, colour, digit, place, *centre), picture = logits
    weight = torch.ones(len(KINDS) + 2, device=kind.device)
    weight[BACKGROUND] = weight[NON_SCENE] = 0.25
    loss = F.cross_entropy(kind.float().flatten(0, 1), labels.kind.flatten(), weight)
    loss = loss + F.cross_entropy(colour.float().flatten(0, 1), labels.colour.flatten(), ignore_index=-1)
    if (labels.digit >= 0).any():
        loss = loss + F.cross_entropy(digit.float().flatten(0, 1), labels.digit.flatten(), ignore_index=-1)
    for axis, bins in enumerate(centre if with_centres else ()):
        loss = loss + F.cross_entropy(bins.float().flatten(0, 1), labels.centre[..., axis].flatten(), ignore_index=-1)
    is_thing = labels.kind < BACKGROUND
    loss = loss + 0.5 * F.smooth_l1_loss(place.float()[is_thing], labels.place[is_thing])
    return loss + 5.0 * F.binary_cross_entropy_with_logits(picture.float(), labels.present)


@torch.no_grad()
def score(heads: Any, pictures: int, hard_share: float) -> dict[str, float]:
    """Return the accuracy on patches of held-out pictures, and the recall of CLS at a threshold of one half."""
    phase = replace(FULL_PICTURES, hard_share=hard_share)
    right: dict[str, list[Tensor]] = defaultdict(list)
    device = next(heads.parameters()).device
    for first in range(0, pictures, 8):
        patches, index, labels = make_batch(HELD_OUT, first, phase)
        (kind, colour, digit, _, *centre), picture = heads(patches.to(device), index.to(device))
        is_thing = labels.kind < BACKGROUND
        right["kind"].append((kind.argmax(-1).cpu() == labels.kind)[is_thing])
        right["colour"].append((colour.argmax(-1).cpu() == labels.colour)[labels.colour >= 0])
        right["digit"].append((digit.argmax(-1).cpu() == labels.digit)[labels.digit >= 0])
        for axis, name in enumerate(("column", "row")):
            right[name].append((centre[axis].argmax(-1).cpu() == labels.centre[..., axis])[is_thing])
        present = labels.present[:, :FIRST_COUNT] > 0
        right["cls_recall"].append((picture[:, :FIRST_COUNT].cpu() > 0)[present])
        is_scene = labels.present[:, IS_SCENE] > 0
        counts = slice(FIRST_COUNT, IS_SCENE)
        is_right = picture[:, counts].argmax(-1).cpu() == labels.present[:, counts].argmax(-1)
        right["cls_count"].append(is_right[is_scene])
    return {name: round(torch.cat(parts).float().mean().item(), 4) for name, parts in right.items()}


def make_heads(seed: int) -> Heads:
    """Return an untrained tower, initialised by `initialize_tower`, with its heads."""
    torch.manual_seed(seed)
    tower = clip_tower(build_model(seed))
    sample, _, labels = make_batch(TRAIN, 10**9, Phase(0, None, 128, 100, SMALL_THINGS))
    initialize_tower(tower, sample[labels.kind < NON_SCENE], torch.Generator().manual_seed(seed))
    return Heads(tower)


def load_heads(path: Path) -> Heads:
    """Load a checkpoint of `train_tower`."""
    heads = Heads(clip_tower(build_model(0)))
    heads.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["module"])
    return heads


def train_tower(
    worker: Worker, folder: Path, seed: int, steps: int, number: int, start: dict[str, Tensor] | None
) -> None:
    """Run course `number` of `COURSES`. Writes NAME.pt (a checkpoint of `Heads`) and NAME.jsonl (progress).

    Args:
        worker: This process.
        folder: Folder of the run.
        seed: Seed.
        steps: Number of steps.
        number: The course.
        start: Weights of a trained tower to start from, whose heads are lost; None: the course before.
    """
    course = COURSES[number]
    if start is not None:
        torch.manual_seed(seed)
        heads = Heads(clip_tower(build_model(seed)))
        heads.tower.load_state_dict(start)
    else:
        heads = load_heads(folder / f"{COURSES[number - 1].name}.pt") if number else make_heads(seed)
    if course.with_centres and not COURSES[number - 1].with_centres:
        add_position_channels(heads)
    trainer = Trainer(worker, heads, folder / f"{course.name}.pt", steps, course.peak)
    start_time, log = time.monotonic(), folder / f"{course.name}.jsonl"
    while trainer.step < steps:
        phase = next(phase for phase in course.phases if trainer.step < phase.until * steps)
        # New heads first learn to read the tower: their first gradients would only damage it.
        heads.tower.requires_grad_(start is None or trainer.step >= NEW_HEADS_STEPS)
        first = (trainer.step * worker.count + worker.rank) * 64 + course.first + seed * 10**8
        patches, index, labels = make_batch(TRAIN, first, phase)
        worker.choose_attention(heads.tower, phase.tokens)
        on_device = Labels(*(getattr(labels, name).to(worker.device) for name in Labels.__dataclass_fields__))
        with worker.autocast():
            logits = trainer.module(patches.to(worker.device), index.to(worker.device))
        loss = tower_loss(logits, on_device, course.with_centres)
        trainer.update(loss)
        if worker.leads and (trainer.step % 50 == 0 or trainer.step == steps):
            line: dict[str, Any] = {
                "step": trainer.step,
                "loss": round(loss.item(), 4),
                "seconds": round(time.monotonic() - start_time),
            }
            if trainer.step % 500 == 0 or trainer.step == steps:
                pictures = 40 if trainer.step < steps else 160
                for name, share in (("simple", 0.0), ("hard", 1.0))[: 1 + (phase.hard_share > 0)]:
                    line[name] = score(trainer.module, pictures, share)
            with log.open("a") as out:
                print(json.dumps(line), file=out)
