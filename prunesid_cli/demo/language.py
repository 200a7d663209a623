"""Stage two: with the tower frozen, the projector and the language model learn to answer from any part of its tokens.

Many questions share one picture: they are packed behind one prefix of visual tokens, each seeing the prefix and itself.
The visual tokens are dropped at random in most steps, in a way that favours no selector: how many are left (8 to 576)
and what they show (uniform, blocks, mostly things, mostly background) both vary.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from .others import draw_other
from .questions import Question, ask_all, ask_of_other
from .scenes import GRID, TRAIN, draw, make_scene
from .tower import patches_of, tower_forward
from .workers import Trainer, Worker

N = GRID * GRID
FOREIGN_EVERY = 14
"""One picture in so many of the store is no scene."""
QUESTIONS = 8


@dataclass(frozen=True)
class Lesson:
    """Until `until` (share of all steps): at most `most` tokens are left (all 576 in a share `whole` of the steps); of
    pictures with one thing only, where `single`; showing things and no background, where `bare`."""

    until: float
    most: int
    whole: float = 0.0
    single: bool = False
    bare: bool = False


LESSONS = (
    Lesson(0.2, 14, single=True, bare=True),
    Lesson(0.45, 24, bare=True),
    Lesson(0.7, 96),
    Lesson(1.0, N, whole=0.2),
)
"""Small and cheap pictures first. Every patch carries a place, so places are learnt only by a model that looks at
things alone, and looking at things alone pays only once places are read: bare things break that circle."""
DROPPING, TWIN = "language", "twin"


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
        patches = patches_of(torch.from_numpy(np.stack([pixels for pixels, _ in drawn]))).to(worker.device)
        with torch.autocast(worker.device, torch.bfloat16):
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


def draw_count(rng: np.random.Generator, lesson: Lesson) -> int:
    """Log-uniform from 8 to the lesson's most, or all 576."""
    if rng.random() < lesson.whole:
        return N
    return int(np.exp(rng.uniform(np.log(8), np.log(lesson.most))))


class Pack:
    """Texts of one step as tensors: questions packed row by row behind a prefix of `visual` slots.

    ids [B, Q] the packed question and answer tokens; position [B, Q], counted from the end of the prefix; owner [B, Q]:
    which question a token belongs to (-1: padding); target [B, Q]: the next token where that is an answer's, else -100.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rows: list[list[Question]]) -> None:
        packed = [self._row(tokenizer, row) for row in rows]
        longest = max(len(row[0]) for row in packed)
        fills = (tokenizer.pad_token_id, 0, -1, -100)
        self.ids, self.position, self.owner, self.target = (
            torch.tensor([row[c] + [fill] * (longest - len(row[c])) for row in packed]) for c, fill in enumerate(fills)
        )

    @staticmethod
    def _row(tokenizer: PreTrainedTokenizerFast, questions: list[Question]) -> tuple[list[int], ...]:
        ids: list[int] = []
        position: list[int] = []
        owner: list[int] = []
        target: list[int] = []
        for k, question in enumerate(questions):
            asked = encode(tokenizer, suffix(question.prompt))
            said = [*encode(tokenizer, " " + question.answer), tokenizer.eos_token_id]
            whole = asked + said
            ids += whole
            position += range(len(whole))
            owner += [k] * len(whole)
            target += [-100] * (len(asked) - 1) + said + [-100]
        return ids, position, owner, target

    def to(self, device: str) -> Pack:
        for name in ("ids", "position", "owner", "target"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


PREFIX = "<s>USER: "


def suffix(prompt: str) -> str:
    """What follows the visual tokens, as the chat template renders it."""
    return f"\n{prompt} ASSISTANT:"


def answer_logits(model: LlavaForConditionalGeneration, prefix: Tensor, visual: Tensor, pack: Pack) -> Tensor:
    """Features [B, T, C] and packed texts -> logits [B, Q, vocabulary]."""
    language = model.model.language_model
    words = language.get_input_embeddings()
    start = words(prefix).expand(len(visual), -1, -1)
    image = model.model.multi_modal_projector(visual)
    embeds = torch.cat([start, image.to(start.dtype), words(pack.ids)], 1)
    before, total = start.shape[1] + image.shape[1], embeds.shape[1]
    position = torch.cat(
        [torch.arange(before, device=visual.device).expand(len(visual), -1), before + pack.position], 1
    )
    seen = torch.ones(total, total, dtype=torch.bool, device=visual.device).tril().repeat(len(visual), 1, 1)
    seen[:, before:, before:] &= pack.owner[:, :, None] == pack.owner[:, None, :]
    mask = torch.zeros(seen.shape, device=visual.device).masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]
    states = language(inputs_embeds=embeds, attention_mask=mask, position_ids=position, use_cache=False)
    logits: Tensor = model.lm_head(states.last_hidden_state[:, before:])
    return logits


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
        asked = [ask_of_other(rng, scene) for _ in range(4)] if is_foreign(i) else ask_all(scene, rng)
        order = rng.permutation(len(asked))[:QUESTIONS]
        questions.append([asked[k] for k in order])
    return Examples(torch.from_numpy(np.stack(visual)).float(), questions)


def train_language(
    worker: Worker,
    folder: Path,
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    steps: int,
    name: str = DROPPING,
) -> None:
    """Train projector and language model on the store; leaves NAME.pt and NAME.jsonl in `folder`.

    The model of that NAME is DROPPING, as shipped, or TWIN, which never sees a pruned picture in training.
    """
    store = Store.open(folder)
    model.requires_grad_(False)
    learner = nn.ModuleList([model.model.multi_modal_projector, model.model.language_model]).requires_grad_(True)
    model.to(worker.device)
    # At the full rate the projector soon shouts kinds and colours, forty times louder, and drowns the places.
    projector = model.model.multi_modal_projector
    trainer = Trainer(worker, learner, folder / f"{name}.pt", steps, 1.5e-3, projector)
    prefix = torch.tensor([encode(tokenizer, PREFIX)], device=worker.device)
    everything = np.arange(len(store.things))
    singles = everything[store.things.max(1) == 0]
    began, right = time.monotonic(), []
    while trainer.step < steps:
        lesson = next(lesson for lesson in LESSONS if trainer.step < lesson.until * steps)
        count = draw_count(np.random.default_rng((trainer.step, 3)), lesson) if name == DROPPING else N
        rng = np.random.default_rng((trainer.step, worker.rank, 4))
        batch = max(4, min(10, 3000 // (count + 150)))
        pool = singles if lesson.single else everything
        examples = make_examples(store, pool[rng.integers(0, len(pool), batch)].tolist(), count, rng, lesson.bare)
        pack = Pack(tokenizer, examples.questions).to(worker.device)
        with trainer.autocast():
            logits = answer_logits(model, prefix, examples.visual.to(worker.device), pack)
        loss = F.cross_entropy(logits.float().flatten(0, 1), pack.target.flatten())
        trainer.update(loss)
        right.append(share_right(logits, pack))
        if worker.leads and trainer.step % 50 == 0:
            line = {"step": trainer.step, "loss": round(loss.item(), 4), "right": round(float(np.mean(right)), 4)}
            with (folder / f"{name}.jsonl").open("a") as out:
                print(json.dumps(line | {"seconds": round(time.monotonic() - began)}), file=out)
            right = []


def share_right(logits: Tensor, pack: Pack) -> float:
    """The share of questions whose whole answer is the most likely one, which is what greedy decoding would say."""
    return float(np.mean([ok for row in which_right(logits, pack) for ok in row]))


def which_right(logits: Tensor, pack: Pack) -> list[list[bool]]:
    wrong = (logits.argmax(-1) != pack.target) & (pack.target != -100)
    return [
        [not bool(wrong[b][pack.owner[b] == k].any()) for k in range(int(pack.owner[b].max()) + 1)]
        for b in range(len(wrong))
    ]
