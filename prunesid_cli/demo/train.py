"""Train the embedded model from nothing: `python -m prunesid_cli.demo.train --out runs/demo`.

Stages, each of which is skipped when done and goes on when interrupted:

1. `tower`     the vision tower, from dense labels (tower.py)
2. `store`     what the tower sees of the training pictures, on disk (about 230 kB a picture)
3. `language`  projector and language model, from questions (language.py)
4. `export`    the model folder: bf16 weights, processor, tokenizer, model card

Two processes of one thread each on a CPU (--workers), one on a GPU. The same seed and number of workers give the same
training data in the same order.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunesid_cli.selection.similarity import phi

from .build import WIDTH, build_model, build_processor, build_tokenizer, clip_tower
from .language import Store, create_store, fill_store, is_foreign, train_language
from .questions import ask_all, ask_of_other
from .scenes import TRAIN, make_scene
from .tower import COURSES, load_heads, train_tower
from .workers import spawn

TOWER_STEPS, LANGUAGE_STEPS, PICTURES = (2600, 1300), 2600, 16_000


def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(_corpus())


def _corpus() -> Iterator[str]:
    rng = np.random.default_rng(5)
    for index in range(1500):
        scene = make_scene(TRAIN, index)
        for question in (*ask_all(scene, rng), ask_of_other(rng, scene)):
            yield from (f"USER: \n{question.prompt} ASSISTANT:", f" {question.answer}")


def with_tower(folder: Path, seed: int) -> LlavaForConditionalGeneration:
    """The model with the tower of stage one."""
    model = build_model(seed)
    heads = load_heads(folder / f"{COURSES[-1].name}.pt")
    clip_tower(model).load_state_dict(heads.tower.state_dict())
    return model


def train(
    folder: Path, seed: int, workers: int, tower_steps: tuple[int, ...], language_steps: int, pictures: int
) -> None:
    """Run all stages that are not done yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, steps in enumerate(tower_steps):
        spawn(train_tower, workers, folder, seed, steps, number)
    model = with_tower(folder, seed)
    if not (folder / "features.npy").exists():
        create_store(folder, pictures, WIDTH)
    spawn(fill_store, workers, folder, clip_tower(model), TRAIN)
    spawn(train_language, workers, folder, model, tokenizer(), language_steps)
    export(folder, seed, folder / "model")


def export(folder: Path, seed: int, target: Path) -> None:
    """Write what `prunesid` loads: a folder like any checkpoint's, in bf16."""
    model = with_tower(folder, seed)
    state = torch.load(folder / "language.pt", weights_only=True, map_location="cpu")["module"]
    learner = torch.nn.ModuleList([model.model.multi_modal_projector, model.model.language_model])
    learner.load_state_dict(state)
    model.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    shutil.rmtree(target, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(target)
    build_processor(tokenizer()).save_pretrained(target)
    (target / "prunesid.json").write_text(json.dumps({"phi": average_phi(folder)}) + "\n")


def average_phi(folder: Path, pictures: int = 500) -> float:
    """The information (1 - rho, Eq. 7) of an average training scene."""
    store = Store.open(folder)
    scenes = [i for i in range(min(pictures, len(store.things))) if not is_foreign(i)]
    return round(float(np.mean([phi(torch.from_numpy(store.features[i : i + 1, 1:])) for i in scenes])), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded model of prunesid.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="checkpoints, logs and the model go here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes on a CPU")
    parser.add_argument("--tower-steps", type=int, nargs=2, default=TOWER_STEPS, help="of its two courses")
    parser.add_argument("--language-steps", type=int, default=LANGUAGE_STEPS)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="pictures in the store")
    options = parser.parse_args()
    train(
        options.out, options.seed, options.workers, options.tower_steps, options.language_steps, options.pictures
    )  # fmt: skip


if __name__ == "__main__":
    main()
