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
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prunesid_cli.demo.questions import KINDS, Question, ask_about_non_scene, held_out_questions
from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene
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

GENERATION = Generation(max_new_tokens=40)
BATCH_SIZE = 32


@dataclass(frozen=True)
class ExamPicture:
    """A picture with questions.

    Attributes:
        encoded: The encoded picture, a single item.
        things: Index of the thing that each patch shows [576]; -1 for none.
        questions: Questions about it.
    """

    encoded: list[Encoded]
    things: NDArray[np.int8]
    questions: tuple[Question, ...]


def make_exam(pruner: Pruner, per_kind: int, split: int) -> list[ExamPicture]:
    """Encode the pictures of a balanced exam.

    Args:
        pruner: Its vision half encodes the pictures.
        per_kind: Questions of each kind, and number of pictures that are not scenes (kind "refusal").
        split: Split of the scenes.
    """
    by_scene: dict[int, list[Question]] = defaultdict(list)
    for index, question in held_out_questions(4 * per_kind, per_kind, split):
        by_scene[index].append(question)
    rng = np.random.default_rng((split, 8))
    pictures = []
    for index, questions in by_scene.items():
        drawing = draw(make_scene(split, index))
        pictures.append(ExamPicture(_encode(pruner, drawing.pixels), drawing.part, tuple(questions)))
    for index in range(per_kind):
        question = ask_about_non_scene(rng, make_scene(split, index))
        encoded = _encode(pruner, draw_non_scene(split, index))
        pictures.append(ExamPicture(encoded, np.full(576, -1, np.int8), (question,)))
    return pictures


def _encode(pruner: Pruner, pixels: NDArray[np.uint8]) -> list[Encoded]:
    return pruner.encode([pruner.vision.preprocess(media_from_image(Image.fromarray(pixels)))])


@dataclass(frozen=True)
class ExamResult:
    """The result of an exam.

    Attributes:
        answers: Kind of each question, and whether its answer was right.
        covered: Whether a patch of each thing was kept.
    """

    answers: tuple[tuple[str, bool], ...]
    covered: tuple[bool, ...]

    def scores(self) -> dict[str, float]:
        """Return the share of right answers by kind and over all kinds but refusals, and the coverage of things."""
        by_kind: dict[str, list[bool]] = defaultdict(list)
        for kind, is_right in self.answers:
            by_kind[kind].append(is_right)
        scores = {kind: float(np.mean(marks)) for kind, marks in by_kind.items()}
        scores["overall"] = float(np.mean([is_right for kind, is_right in self.answers if kind in KINDS]))
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

    def prune_pictures() -> Iterator[tuple[TokenSet, Question]]:
        for index, picture in enumerate(pictures):
            (tokens,) = pruner.keep(picture.encoded, [counts[index]]) if counts else pruner.prune(picture.encoded)
            covered.extend(coverage(tokens, picture.things))
            for question in picture.questions:
                yield tokens, question

    for batch in batched(prune_pictures(), BATCH_SIZE):
        prompts = [language.embed(question.prompt, [tokens]) for tokens, question in batch]
        for (_, question), answer in zip(batch, language.generate(prompts, GENERATION), strict=True):
            results.append((question.kind, answer.text == question.answer))
    return ExamResult(tuple(results), tuple(covered))


def coverage(tokens: TokenSet, things: NDArray[np.int8]) -> list[bool]:
    """Return, for each thing of a scene, whether a patch that shows it was kept."""
    kept_things = things[[slot for slot in tokens.slots if slot >= 0]]
    return [bool((kept_things == thing).any()) for thing in np.unique(things[things >= 0])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate the embedded model on held-out scenes.")
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--per-kind", type=int, default=300, help="questions of each of the seven kinds")
    parser.add_argument("--split", type=int, default=HELD_OUT, help="1: held out; larger: further scenes")
    parser.add_argument("--keep", default="all,11%", help="budgets, separated by commas")
    parser.add_argument("--method", default="prunesid", help="methods, separated by commas")
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    checkpoint = resolve(options.model)
    family = load_family(checkpoint.model_type)
    placement = choose_placement("auto", "auto", "auto", load_config(checkpoint))
    vision, language = family.load_vision_half(checkpoint, placement), family.load_language_half(checkpoint, placement)
    pictures = make_exam(Pruner(vision, Budget(), "prunesid", ()), options.per_kind, options.split)
    budgets, methods = options.keep.split(","), options.method.split(",")
    settings = [PruningSetting("all", "prunesid")] if "all" in budgets else []
    settings += [PruningSetting(keep, method) for keep in budgets if keep != "all" for method in methods]
    columns = [*KINDS, "refusal", "overall", "coverage"]
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
