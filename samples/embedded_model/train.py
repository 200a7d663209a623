"""Train the embedded model from scratch: `python -m samples.embedded_model.train --out runs/demo`.

The stages continue after an interruption and are skipped when they are done:

1. `tower`: the vision tower, on dense labels (tower.py)
2. `store`: features of the training pictures, on disk, about 230 kB per picture (store.py)
3. `language`: projector and language model, on questions (initialization.py, align.py, language.py)
4. `export`: the model folder with bf16 weights, processor and tokenizer

On a CPU there are two processes of one thread each (--workers), on a GPU there is one. The same seed and number of
workers give the same training data in the same order.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunesid_cli.demo.build import WIDTH, build_model, build_processor, build_tokenizer, clip_tower
from prunesid_cli.demo.questions import ask_about_non_scene, ask_all
from prunesid_cli.demo.scenes import TRAIN, make_scene
from prunesid_cli.selection.similarity import compute_phi
from samples.embedded_model.align import align_projector, refit_projector
from samples.embedded_model.initialization import initialize_language
from samples.embedded_model.language import DROPPING, TWIN, train_language
from samples.embedded_model.packing import encode
from samples.embedded_model.store import Store, create_store, fill_store, is_non_scene
from samples.embedded_model.tower import load_heads, train_tower
from samples.embedded_model.tower_courses import COURSES
from samples.embedded_model.workers import spawn, steps_done


@dataclass(frozen=True)
class Plan:
    """Settings of a training run.

    Attributes:
        seed: Seed.
        workers: Processes on a CPU.
        tower_steps: Steps of the tower's courses.
        language_steps: Steps of the language model's courses.
        pictures: Pictures in the store.
        tower: Model folder to take the tower from, instead of training one.
        start: Model folder to start the last courses from, those on hard scenes, instead of training one.
        twin: Whether to train the twin, which never sees dropped tokens, for comparison.
    """

    seed: int = 0
    workers: int = 2
    tower_steps: tuple[int, ...] = (2600, 1300, 320, 1500)
    language_steps: tuple[int, ...] = (8000, 600, 8000)
    pictures: int = 24_000
    tower: Path | None = None
    start: Path | None = None
    twin: bool = False


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer on questions and answers."""
    return build_tokenizer(_corpus())


def _corpus() -> Iterator[str]:
    rng = np.random.default_rng(5)
    for index in range(1500):
        scene = make_scene(TRAIN, index)
        for question in (*ask_all(scene, rng), ask_about_non_scene(rng, scene)):
            yield from (f"USER: \n{question.prompt} ASSISTANT:", f" {question.answer}")


def load_tower(folder: Path) -> dict[str, Tensor]:
    """Return the weights of the tower in a model folder."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    weights: dict[str, Tensor] = clip_tower(model).state_dict()
    return weights


def run_tower_courses(folder: Path, plan: Plan) -> dict[str, Tensor]:
    """Run the courses of the tower that are not done, and return its weights."""
    first = len(COURSES) - 1 if plan.start else 0
    start = load_tower(plan.start) if plan.start else None
    for number in range(first, len(COURSES)):
        steps = plan.tower_steps[number]
        if steps_done(folder / f"{COURSES[number].name}.pt") < steps:
            spawn(train_tower, plan.workers, folder, plan.seed, steps, number, start)
    weights: dict[str, Tensor] = load_heads(folder / f"{COURSES[-1].name}.pt").tower.state_dict()
    return weights


def train(folder: Path, plan: Plan) -> None:
    """Run all stages that are not done."""
    folder.mkdir(parents=True, exist_ok=True)
    model, tokenizer = build_model(plan.seed), make_tokenizer()
    tower_weights = load_tower(plan.tower) if plan.tower else run_tower_courses(folder, plan)
    clip_tower(model).load_state_dict(tower_weights)
    if not (folder / "features.npy").exists():
        create_store(folder, plan.pictures, WIDTH)
    spawn(fill_store, plan.workers, folder, clip_tower(model), TRAIN)
    language, language_steps = model.model.language_model, plan.language_steps
    courses = TWIN if plan.twin else DROPPING
    if plan.start:
        started = LlavaForConditionalGeneration.from_pretrained(plan.start, dtype=torch.float32)
        projector = model.model.multi_modal_projector
        projector.load_state_dict(started.model.multi_modal_projector.state_dict())
        language.load_state_dict(started.model.language_model.state_dict())
        if not (folder / f"{courses[-1].name}.pt").exists():
            refit_projector(projector, clip_tower(started), Store.open(folder), plan.seed)
        courses, language_steps = courses[-1:], plan.language_steps[-1:]
    elif not (folder / f"{courses[0].name}.pt").exists():
        initialize_language(language, plan.seed)
        table = language.get_input_embeddings().weight
        align_projector(model.model.multi_modal_projector, table, word_token(tokenizer), Store.open(folder), plan.seed)
    for course, steps in zip(courses, language_steps, strict=False):
        if steps_done(folder / f"{course.name}.pt") < steps:
            spawn(train_language, plan.workers, folder, model, tokenizer, steps, course)
        load_language(model, folder / f"{course.name}.pt")
    export(folder, model, tokenizer, "model-twin" if plan.twin else "model")


def load_language(model: LlavaForConditionalGeneration, checkpoint: Path) -> None:
    """Load projector and language model from a checkpoint of `train_language`."""
    learner = torch.nn.ModuleList([model.model.multi_modal_projector, model.model.language_model])
    learner.load_state_dict(torch.load(checkpoint, weights_only=True, map_location="cpu")["module"])


def word_token(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], int]:
    """Return a function from a word to its token, the first one if there are several."""
    return lambda word: encode(tokenizer, f" {word}")[0]


def export(folder: Path, model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Write the model folder `name`, which `prunesid` loads like any checkpoint, in bf16."""
    target = folder / name
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    shutil.rmtree(target, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(target)
    build_processor(tokenizer).save_pretrained(target)
    (target / "prunesid.json").write_text(json.dumps({"phi": average_phi(folder)}) + "\n")


def average_phi(folder: Path, pictures: int = 500) -> float:
    """Return the information (1 - rho, Eq. 7) of an average training scene."""
    store = Store.open(folder)
    scenes = [index for index in range(min(pictures, len(store.parts))) if not is_non_scene(index)]
    return round(
        float(np.mean([compute_phi(torch.tensor(store.features[index : index + 1, 1:])) for index in scenes])), 4
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model of prunesid.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for checkpoints, logs and the model"
    )
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument("--workers", type=int, default=Plan.workers, help="processes on a CPU")
    parser.add_argument("--tower-steps", type=int, nargs=4, default=Plan.tower_steps, help="of its four courses")
    parser.add_argument(
        "--language-steps",
        type=int,
        nargs="+",
        default=Plan.language_steps,
        help="of its courses",
    )
    parser.add_argument("--pictures", type=int, default=Plan.pictures, help="pictures in the store")
    parser.add_argument("--tower", type=Path, help="model folder to take the tower from; only the rest is trained")
    parser.add_argument(
        "--start",
        type=Path,
        help="model folder to continue with the last courses, on hard scenes; with --tower, only the language model's",
    )
    parser.add_argument("--twin", action="store_true", help="train without dropping tokens, for comparison")
    options = vars(parser.parse_args())
    train(options.pop("out"), Plan(**options))


if __name__ == "__main__":
    main()
