"""Stage three: with the tower frozen, the projector and the language model learn to answer from any part of its tokens.

The visual tokens are dropped at random in most steps, in a way that favours no selector: how many are left (8 to 576)
and what they show (uniform, blocks, mostly things, mostly background) both vary.
"""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunesid_cli.demo.questions import Question, ask_all, ask_about_non_scene
from prunesid_cli.demo.scenes import TRAIN, Scene, make_scene
from samples.embedded_model.packing import PREFIX, Pack, answer_logits, encode, share_right
from samples.embedded_model.store import N, Store, is_foreign, keep_some
from samples.embedded_model.workers import Trainer, Worker

QUESTIONS = 7
"""Asked of each picture in a step: what is shown, and others drawn at random."""


@dataclass(frozen=True)
class Lesson:
    """Until `until` (share of all steps): at most `most` tokens are left (all 576 in a share `whole` of the steps); of
    pictures with one thing only, where `single`; showing things and no background, where `bare`; every word is asked
    for what will be told of the next thing, too, where `hints`."""

    until: float
    most: int
    whole: float = 0.0
    single: bool = False
    bare: bool = False
    hints: bool = False


LESSONS = (
    Lesson(0.02, 14, single=True, bare=True, hints=True),
    Lesson(0.6, 24, bare=True, hints=True),
    Lesson(0.8, 96),
    Lesson(1.0, N, whole=0.2),
)
"""Small and cheap pictures first. Every patch carries a place, so places are learnt only by a model that looks at
things alone, and looking at things alone pays only once places are read: bare things break that circle. With hints, the
word "star" of a question learns at once to fetch what is asked of the star, which takes one look at the visual tokens,
where the answer itself takes two; and the last word about a thing to fetch the next one, colour and shape together."""
LAST_LESSONS = (Lesson(1.0, N, whole=0.6),)
"""Attention that has learnt on few tokens spreads too thin over all 576: after the first course, with a fifth of whole
pictures in its last lesson alone, .89 was right of 63 tokens and .84 of 576."""


@dataclass(frozen=True)
class Course:
    """One cosine of the learning rate, from `peak`; goes on from the weights of the course before it."""

    name: str
    lessons: tuple[Lesson, ...]
    peak: float


DROPPING = (Course("language", LESSONS, 1.5e-3), Course("language2", LAST_LESSONS, 4e-4))
TWIN = (Course("twin", tuple(replace(lesson, whole=1.0) for lesson in LESSONS), 1.5e-3),)
"""The twin never sees a pruned picture in training."""


def draw_count(rng: np.random.Generator, lesson: Lesson) -> int:
    """Log-uniform from 8 to the lesson's most, or all 576."""
    if rng.random() < lesson.whole:
        return N
    return int(np.exp(rng.uniform(np.log(8), np.log(lesson.most))))


class Pools:
    """Which pictures of a store a step takes: any, those with one thing, or, half of the time, those with two shapes of
    one colour.

    Where every colour is there once, a caption needs no places after its first word: what is purple is the circle. One
    picture in four is not like that; without more of them, and without hints at the next thing, half of such shapes
    were wrong after 4,300 steps, and one in a hundred of the others.
    """

    def __init__(self, pictures: int) -> None:
        scenes = {i: make_scene(TRAIN, i) for i in range(pictures) if not is_foreign(i)}
        self.everything = np.arange(pictures)
        self.singles = np.array([i for i, scene in scenes.items() if len(scene.things) == 1])
        self.twins = np.array([i for i, scene in scenes.items() if has_twins(scene)])

    def draw(self, count: int, rng: np.random.Generator, single: bool) -> list[int]:
        if single:
            return rng.choice(self.singles, count).tolist()
        some, any_of = rng.choice(self.twins, count), rng.choice(self.everything, count)
        return np.where(rng.random(count) < 0.5, some, any_of).tolist()


def has_twins(scene: Scene) -> bool:
    """Whether two different shapes have one colour."""
    pairs = itertools.combinations(scene.shapes, 2)
    return any(a.colour == b.colour and a.kind != b.kind for a, b in pairs)


@dataclass(frozen=True)
class Examples:
    visual: Tensor
    questions: list[list[Question]]


def make_examples(store: Store, indices: list[int], count: int, rng: np.random.Generator, bare: bool) -> Examples:
    """Pictures of the store with `count` tokens left (and CLS before them in most steps) and questions about them."""
    with_cls = count < N and rng.random() < 0.7
    visual, questions = [], []
    for i in indices:
        kept = keep_some(store.things[i], count, rng, bare) if count < N else np.arange(N)
        rows = np.concatenate([[0], 1 + kept]) if with_cls else 1 + kept
        visual.append(store.features[i][rows])
        scene = make_scene(TRAIN, i)
        asked = [ask_about_non_scene(rng, scene) for _ in range(4)] if is_foreign(i) else ask_all(scene, rng)
        order = rng.random(len(asked)) - [question.kind == "caption" for question in asked]
        questions.append([asked[k] for k in order.argsort()[:QUESTIONS]])
    return Examples(torch.from_numpy(np.stack(visual)).float(), questions)


def loss_of(logits: Tensor, pack: Pack, hints: bool) -> Tensor:
    """Of the answers, and with `hints` of what will be told of the next thing, asked of every word before it."""
    loss = F.cross_entropy(logits.flatten(0, 1), pack.target.flatten())
    if hints:
        loss = loss + F.cross_entropy(logits.repeat_interleave(2, 1).flatten(0, 1), pack.hint.flatten())
    return loss


def train_language(
    worker: Worker,
    folder: Path,
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    course: Course,
) -> None:
    """Train projector and language model on the store; leaves NAME.pt and NAME.jsonl of the course in `folder`."""
    name = course.name
    store = Store.open(folder)
    model.requires_grad_(False)
    learner = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model]).requires_grad_(True)
    model.to(worker.device)
    # An untrained language model has no use for places yet, and would have the projector forget them: at the full rate
    # it soon shouts kinds and colours forty times louder, at a tenth of it the places are gone after 1,000 steps. So it
    # waits for the lessons without hints.
    projector = model.model.multi_modal_projector
    trainer = Trainer(worker, learner, folder / f"{name}.pt", steps, course.peak, projector)
    prefix = torch.tensor([encode(tokenizer, PREFIX)], device=worker.device)
    pools = Pools(len(store.things))
    began, right = time.monotonic(), []
    while trainer.step < steps:
        lesson = next(lesson for lesson in course.lessons if trainer.step < lesson.until * steps)
        projector.requires_grad_(not lesson.hints)
        count = draw_count(np.random.default_rng((trainer.step, 3)), lesson)
        rng = np.random.default_rng((trainer.step, worker.rank, 4))
        batch = max(4, min(10, 3000 // (count + 150)))
        examples = make_examples(store, pools.draw(batch, rng, lesson.single), count, rng, lesson.bare)
        pack = Pack(tokenizer, examples.questions).to(worker.device)
        worker.choose_attention(model.model.language_model, count + pack.ids.shape[1])
        with worker.autocast():
            logits = answer_logits(model, prefix, examples.visual.to(worker.device), pack)
        loss = loss_of(logits.float(), pack, lesson.hints)
        trainer.update(loss)
        right.append(share_right(logits, pack))
        if worker.leads and trainer.step % 50 == 0:
            line = {"step": trainer.step, "loss": round(loss.item(), 4), "right": round(float(np.mean(right)), 4)}
            with (folder / f"{name}.jsonl").open("a") as out:
                print(json.dumps(line | {"seconds": round(time.monotonic() - began)}), file=out)
            right = []
