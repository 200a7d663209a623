"""Stage three: training of projector and language model to answer from any part of the frozen tower's tokens.

In most steps visual tokens are dropped at random, in ways that favour no selector: the number of tokens that are left
(8 to 576) and their composition (uniform, in blocks, mostly things, mostly background) both vary. In some steps of the
last course, questions are about two pictures.
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
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunesid_cli.demo.questions import Question, ask_about_non_scene, ask_about_pair, ask_all
from prunesid_cli.demo.scenes import TRAIN, Scene
from samples.embedded_model.packing import PROMPT_PREFIX, Pack, answer_logits, encode, share_right
from samples.embedded_model.store import NUM_PATCHES, Store, draw_kept_patches, is_hard, is_non_scene, store_scene
from samples.embedded_model.workers import Trainer, Worker

QUESTIONS_PER_PICTURE, FIRST_KINDS = 7, ("caption", "number")
"""Questions about each picture in a step: those of the first kinds, and others at random."""
MIN_TOKENS = 8
CLS_SHARE = 0.7
"""Share of the steps with dropped tokens in which CLS is kept."""


@dataclass(frozen=True)
class Lesson:
    """A part of a course.

    Attributes:
        until: Share of the course's steps at which it ends.
        max_tokens: Largest number of tokens that are left.
        undropped_share: Share of the steps in which all 576 tokens are left.
        single: Whether pictures have only one thing.
        bare: Whether the tokens show things rather than background.
        with_hints: Whether each word also predicts what will be said of the next thing.
        pair_share: Share of the steps with two pictures.
    """

    until: float
    max_tokens: int
    undropped_share: float = 0.0
    single: bool = False
    bare: bool = False
    with_hints: bool = False
    pair_share: float = 0.0


LESSONS = (
    Lesson(0.02, 14, single=True, bare=True, with_hints=True),
    Lesson(0.6, 24, bare=True, with_hints=True),
    Lesson(0.8, 96),
    Lesson(1.0, NUM_PATCHES, undropped_share=0.2),
)
"""The first lessons have few tokens, which is cheap. Every patch encodes a place, so places are learnt only by a model
that attends to things alone, which pays only once places are read: bare things solve that. With hints, the word "star"
of a question soon learns to fetch the answer about the star, which takes one attention step to the visual tokens, while
the answer itself takes two; and the last word about a thing learns to fetch the next thing, colour and shape
together."""
LAST_LESSONS = (Lesson(1.0, NUM_PATCHES, undropped_share=0.6),)
"""Attention that was trained on few tokens spreads too thin over all 576: after the first course, in which only a fifth
of the last lesson has all tokens, .89 of the answers were right with 63 tokens, and .84 with 576."""

PAIR_LESSONS = (
    Lesson(0.4, 32, bare=True, pair_share=0.4),
    Lesson(0.72, 128, pair_share=0.3),
    Lesson(1.0, NUM_PATCHES, undropped_share=0.4, pair_share=0.25),
)


@dataclass(frozen=True)
class LanguageCourse:
    """A run with one cosine of the learning rate, from the weights of the course before it.

    Attributes:
        name: Name of its files.
        lessons: Its lessons.
        peak: Highest learning rate.
    """

    name: str
    lessons: tuple[Lesson, ...]
    peak: float


DROPPING = (
    LanguageCourse("language", LESSONS, 1.5e-3),
    LanguageCourse("language2", LAST_LESSONS, 4e-4),
    LanguageCourse("language3", PAIR_LESSONS, 1e-3),
)
TWIN = (LanguageCourse("twin", tuple(replace(lesson, undropped_share=1.0) for lesson in LESSONS), 1.5e-3),)
"""The twin is trained without dropping."""


def draw_count(rng: np.random.Generator, lesson: Lesson) -> int:
    """Draw the number of tokens that are left: log-uniform from 8 to the lesson's maximum, or all 576."""
    if rng.random() < lesson.undropped_share:
        return NUM_PATCHES
    return int(np.exp(rng.uniform(np.log(MIN_TOKENS), np.log(lesson.max_tokens))))


class Pools:
    """Draws pictures of a store: those with one thing; or, a quarter each, those with two shapes of one colour, with a
    number of several digits, simple ones, and any.

    If no colour repeats, a caption needs no places after its first word: what is purple is the circle. In one picture
    of four a colour repeats. Without more of those, and without hints about the next thing, half of their shapes were
    wrong after 4,300 steps, while one in a hundred of the others was.

    Args:
        pictures: Pictures of the store.
    """

    def __init__(self, pictures: int) -> None:
        scenes = {index: store_scene(TRAIN, index) for index in range(pictures) if not is_non_scene(index)}
        self.everything, self.scenes = np.arange(pictures), np.array(list(scenes))
        self.singles = np.array([index for index, scene in scenes.items() if len(scene.things) == 1])
        self.twins = np.array([index for index, scene in scenes.items() if has_twins(scene)])
        self.numbers = np.array([i for i, scene in scenes.items() if scene.number and len(scene.number.digits) > 1])
        self.simple = np.array([index for index in scenes if not is_hard(index)])

    def draw_pairs(self, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
        """Return the indices of `count` pairs of scenes."""
        return [tuple(pair) for pair in rng.choice(self.scenes, (count, 2)).tolist()]

    def draw(self, count: int, rng: np.random.Generator, single: bool) -> list[tuple[int, ...]]:
        """Return the indices of `count` pictures, each alone."""
        if single:
            return [(index,) for index in rng.choice(self.singles, count).tolist()]
        pools = (self.twins, self.numbers, self.simple, self.everything)
        return [(int(rng.choice(pools[int(rng.integers(len(pools)))])),) for _ in range(count)]


def has_twins(scene: Scene) -> bool:
    """Whether two different shapes have the same colour."""
    pairs = itertools.combinations(scene.shapes, 2)
    return any(first.colour == second.colour and first.kind != second.kind for first, second in pairs)


@dataclass(frozen=True)
class Examples:
    """The examples of a step.

    Attributes:
        visual: Visual tokens of one or two pictures an example [B, P, T, C].
        questions: Questions of each example.
    """

    visual: Tensor
    questions: list[list[Question]]


def make_examples(
    store: Store, rows: list[tuple[int, ...]], count: int, rng: np.random.Generator, bare: bool
) -> Examples:
    """Take pictures of the store with `count` tokens left, after CLS in most steps, and ask questions about them.

    Args:
        store: The store.
        rows: One or two pictures of each example.
        count: Number of visual tokens that are left of each picture.
        rng: Source of randomness.
        bare: Whether the tokens show things rather than background.
    """
    with_cls = count < NUM_PATCHES and rng.random() < CLS_SHARE

    def read(index: int) -> NDArray[np.float16]:
        kept = np.arange(NUM_PATCHES)
        if count < NUM_PATCHES:
            kept = draw_kept_patches(store.parts[index], count, rng, bare)
        return store.features[index][np.concatenate([[0], 1 + kept]) if with_cls else 1 + kept]

    visual = np.stack([np.stack([read(index) for index in row]) for row in rows])
    return Examples(torch.from_numpy(visual).float(), [ask(row, rng) for row in rows])


def ask(row: tuple[int, ...], rng: np.random.Generator) -> list[Question]:
    """Return questions about one or two pictures of the store."""
    scenes = [store_scene(TRAIN, index) for index in row]
    if len(row) == 2:
        pairs = (ask_about_pair(scenes[0], scenes[1], rng) for _ in range(3 * QUESTIONS_PER_PICTURE))
        candidates = [question for question in dict.fromkeys(pairs) if question]
    elif is_non_scene(row[0]):
        candidates = [ask_about_non_scene(rng, scenes[0]) for _ in range(4)]
    else:
        candidates = ask_all(scenes[0], rng)
    order = rng.random(len(candidates)) - [question.kind in FIRST_KINDS for question in candidates]
    return [candidates[number] for number in order.argsort()[:QUESTIONS_PER_PICTURE]]


def language_loss(logits: Tensor, pack: Pack, with_hints: bool) -> Tensor:
    """Return the loss of the answers and, with hints, of what each word predicts about the next thing."""
    loss = F.cross_entropy(logits.flatten(0, 1), pack.target.flatten())
    if with_hints:
        loss = loss + F.cross_entropy(logits.repeat_interleave(2, 1).flatten(0, 1), pack.hint.flatten())
    return loss


def train_language(
    worker: Worker,
    folder: Path,
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    course: LanguageCourse,
) -> None:
    """Run a course on the store. Writes NAME.pt (a checkpoint) and NAME.jsonl (progress) into `folder`."""
    name = course.name
    store = Store.open(folder)
    model.requires_grad_(False)
    learner = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model]).requires_grad_(True)
    model.to(worker.device)
    # An untrained language model cannot use places yet, and would make the projector forget them: at the full learning
    # rate, kinds and colours soon become forty times larger, and at a tenth of it, the places are lost after 1,000
    # steps. So the projector is frozen until the lessons without hints.
    projector = model.model.multi_modal_projector
    trainer = Trainer(worker, learner, folder / f"{name}.pt", steps, course.peak, projector)
    prefix = torch.tensor([encode(tokenizer, PROMPT_PREFIX)], device=worker.device)
    (separator,) = encode(tokenizer, "\n")
    pools = Pools(len(store.parts))
    start_time, right, pairs_right = time.monotonic(), list[float](), list[float]()
    while trainer.step < steps:
        lesson = next(lesson for lesson in course.lessons if trainer.step < lesson.until * steps)
        projector.requires_grad_(not lesson.with_hints)
        count = draw_count(np.random.default_rng((trainer.step, 3)), lesson)
        rng = np.random.default_rng((trainer.step, worker.rank, 4))
        is_pair = np.random.default_rng((trainer.step, 5)).random() < lesson.pair_share
        batch = max(2 if is_pair else 4, min(10, 3000 // ((1 + is_pair) * count + 150)))
        rows = pools.draw_pairs(batch, rng) if is_pair else pools.draw(batch, rng, lesson.single)
        examples = make_examples(store, rows, count, rng, lesson.bare)
        pack = Pack(tokenizer, examples.questions).to(worker.device)
        worker.choose_attention(model.model.language_model, (1 + is_pair) * count + pack.ids.shape[1])
        with worker.autocast():
            logits = answer_logits(model, prefix, separator, examples.visual.to(worker.device), pack)
        loss = language_loss(logits.float(), pack, lesson.with_hints)
        trainer.update(loss)
        (pairs_right if is_pair else right).append(share_right(logits, pack))
        if worker.leads and trainer.step % 50 == 0:
            line = {"step": trainer.step, "loss": round(loss.item(), 4), "right": round(float(np.mean(right)), 4)}
            if pairs_right:
                line["pairs_right"] = round(float(np.mean(pairs_right)), 4)
            with (folder / f"{name}.jsonl").open("a") as out:
                print(json.dumps(line | {"seconds": round(time.monotonic() - start_time)}), file=out)
            right, pairs_right = [], []
