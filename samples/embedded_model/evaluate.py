"""Evaluate the embedded model on scenes that it was not trained on: `python -m samples.embedded_model.evaluate`.

The questions are balanced over kinds, and an answer is right if it equals the expected one. The model runs through the
same halves and the same selection as in the commands. Prints a table and, with --out, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prunesid_cli.demo.questions import KINDS, Question, ask_about_non_scene, ask_about_pair, held_out_questions
from prunesid_cli.demo.scenes import HELD_OUT, Drawing, Scene, draw, make_hard_scene, make_scene
from prunesid_cli.evaluate.results import PruningSetting
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.base import LanguageHalf
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.runtime.batch_size import batched
from prunesid_cli.selection.budget import Budget
from prunesid_cli.types import Encoded, Generation, TokenSet
from samples.embedded_model.non_scenes import draw_non_scene
from samples.embedded_model.store import NUM_PATCHES

GENERATION = Generation(max_new_tokens=40)
BATCH_SIZE = 32


@dataclass(frozen=True)
class ExamPicture:
    """A picture, or two of them, with questions.

    Attributes:
        encoded: The encoded pictures.
        parts: Index of the part that each patch of each picture shows [576]; -1 for none.
        questions: Questions about them.
    """

    encoded: list[Encoded]
    parts: list[NDArray[np.int8]]
    questions: tuple[Question, ...]


def make_exam(pruner: Pruner, per_kind: int, split: int, is_hard: bool = False) -> list[ExamPicture]:
    """Encode the pictures of a balanced exam.

    Args:
        pruner: Its vision half encodes the pictures.
        per_kind: Questions of each kind, and number of pictures that are not scenes (kind "refusal").
        split: Split of the scenes.
        is_hard: Whether the scenes are hard. Then there are also questions about two of them (kind "pair").
    """
    make = make_hard_scene if is_hard else make_scene
    by_scene: dict[int, list[Question]] = defaultdict(list)
    for index, question in held_out_questions(8 * per_kind, per_kind, split, make):
        by_scene[index].append(question)
    rng = np.random.default_rng((split, 8))
    pictures = []

    def add(drawings: Sequence[Drawing], *questions: Question) -> None:
        images = [media_from_image(Image.fromarray(drawing.pixels)) for drawing in drawings]
        encoded = pruner.encode([pruner.vision.preprocess(image) for image in images])
        pictures.append(ExamPicture(encoded, [drawing.part for drawing in drawings], questions))

    for index, questions in by_scene.items():
        add([draw(make(split, index))], *questions)
    for scenes, question in islice(_ask_about_pairs(split, rng), per_kind if is_hard else 0):
        add([draw(scene) for scene in scenes], question)
    for index in range(per_kind):
        drawing = Drawing(draw_non_scene(split, index), np.full(NUM_PATCHES, -1, np.int8))
        add([drawing], ask_about_non_scene(rng, make(split, index)))
    return pictures


def _ask_about_pairs(split: int, rng: np.random.Generator) -> Iterator[tuple[list[Scene], Question]]:
    """Yield pairs of hard scenes about which nothing else is asked, with a question each."""
    for index in count(10**6, 2):
        first, second = make_hard_scene(split, index), make_hard_scene(split, index + 1)
        if question := ask_about_pair(first, second, rng):
            yield [first, second], question


@dataclass(frozen=True)
class ExamResult:
    """The result of an exam.

    Attributes:
        answers: Kind of each question, and whether its answer was right.
        covered: Whether a patch of each thing, or digit, was kept.
    """

    answers: tuple[tuple[str, bool], ...]
    covered: tuple[bool, ...]

    def scores(self) -> dict[str, float]:
        """Return the share of right answers by kind and over all kinds but refusals, and the coverage of things."""
        by_kind: dict[str, list[bool]] = defaultdict(list)
        for kind, is_right in self.answers:
            by_kind[kind].append(is_right)
        scores = {kind: float(np.mean(marks)) for kind, marks in by_kind.items()}
        scores["overall"] = float(np.mean([is_right for kind, is_right in self.answers if kind != "refusal"]))
        scores["coverage"] = float(np.mean(self.covered))
        return scores


def run_exam(
    pruner: Pruner, language: LanguageHalf, pictures: Sequence[ExamPicture], counts: Sequence[int] | None = None
) -> ExamResult:
    """Ask all questions.

    Args:
        pruner: Prunes the pictures.
        language: Answers.
        pictures: The exam.
        counts: Tokens to keep of each picture; None: by the pruner's budget.
    """
    results: list[tuple[str, bool]] = []
    covered: list[bool] = []

    def prune_pictures() -> Iterator[tuple[list[TokenSet], Question]]:
        for index, picture in enumerate(pictures):
            kept = pruner.keep(picture.encoded, [counts[index]]) if counts else pruner.prune(picture.encoded)
            for tokens, parts in zip(kept, picture.parts, strict=True):
                covered.extend(coverage(tokens, parts))
            for question in picture.questions:
                yield kept, question

    for batch in batched(prune_pictures(), BATCH_SIZE):
        prompts = [language.embed(question.prompt, kept) for kept, question in batch]
        for (_, question), answer in zip(batch, language.generate(prompts, GENERATION), strict=True):
            results.append((question.kind, answer.text == question.answer))
    return ExamResult(tuple(results), tuple(covered))


def coverage(tokens: TokenSet, parts: NDArray[np.int8]) -> list[bool]:
    """Return, for each part of a scene, whether a patch that shows it was kept."""
    kept_parts = parts[[slot for slot in tokens.slots if slot >= 0]]
    return [bool((kept_parts == part).any()) for part in np.unique(parts[parts >= 0])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the embedded model on held-out scenes.")
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--per-kind", type=int, default=300, help="questions of each of the seven kinds")
    parser.add_argument("--split", type=int, default=HELD_OUT, help="1: held out; larger: further scenes")
    parser.add_argument("--hard", action="store_true", help="ask about hard scenes, and pairs of them")
    parser.add_argument("--keep", default="all,11%", help="budgets, separated by commas")
    parser.add_argument("--method", default="prunesid", help="methods, separated by commas")
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    checkpoint = resolve(options.model)
    family = load_family(checkpoint.model_type)
    placement = choose_placement("auto", "auto", "auto", load_config(checkpoint))
    vision, language = family.load_vision_half(checkpoint, placement), family.load_language_half(checkpoint, placement)
    pictures = make_exam(Pruner(vision, Budget(), "prunesid", ()), options.per_kind, options.split, options.hard)
    budgets, methods = options.keep.split(","), options.method.split(",")
    settings = [PruningSetting("all", "prunesid")] if "all" in budgets else []
    settings += [PruningSetting(keep, method) for keep in budgets if keep != "all" for method in methods]
    columns = [*KINDS, *(["pair"] if options.hard else []), "refusal", "overall", "coverage"]
    print(f"{'':24}" + "".join(f"{name:>10}" for name in columns))
    results = {}
    for setting in settings:
        start_time = time.perf_counter()
        pruner = Pruner(vision, Budget.parse(setting.keep), setting.method, ())
        scores = results[str(setting)] = run_exam(pruner, language, pictures).scores()
        row = "".join(f"{scores[name]:10.3f}" for name in columns)
        print(f"{str(setting):24}{row}   {time.perf_counter() - start_time:.0f} s", flush=True)
    if options.out:
        num_questions = sum(len(picture.questions) for picture in pictures)
        command = "python -m samples.embedded_model.evaluate " + shlex.join(sys.argv[1:])
        facts = {"command": command, "model": checkpoint.revision, "split": options.split, "per_kind": options.per_kind}
        facts |= {"questions": num_questions, "torch": torch.__version__, "device": str(placement.device)}
        options.out.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
