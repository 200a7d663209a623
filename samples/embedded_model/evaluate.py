"""Examine the embedded model on scenes that it has never seen: `python -m samples.embedded_model.evaluate`.

The questions are balanced over kinds; an answer is right when it equals the expected one. Everything runs through the
same halves and the same selection as the commands. Prints a table and, with --out, writes JSON.
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
from prunesid_cli.demo.scenes import HELD_OUT, Drawing, draw, make_scene
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
from samples.embedded_model.others import draw_other

GENERATION = Generation(max_new_tokens=40)
BATCH = 32


@dataclass(frozen=True)
class Picture:
    """An encoded picture, which patches show which thing [576] (-1: none), and what is asked about it."""

    encoded: list[Encoded]
    things: NDArray[np.int8]
    questions: tuple[Question, ...]


def examination(pruner: Pruner, per_kind: int, split: int) -> list[Picture]:
    """Encode the pictures of a balanced examination, foreign ones (kind `refusal`) included."""
    asked: dict[int, list[Question]] = defaultdict(list)
    for index, question in held_out_questions(4 * per_kind, per_kind, split):
        asked[index].append(question)
    rng = np.random.default_rng((split, 8))
    pictures = [_picture(pruner, draw(make_scene(split, i)), tuple(questions)) for i, questions in asked.items()]
    for index in range(per_kind):
        question = ask_about_non_scene(rng, make_scene(split, index))
        encoded = _encode(pruner, draw_other(split, index))
        pictures.append(Picture(encoded, np.full(576, -1, np.int8), (question,)))
    return pictures


def _picture(pruner: Pruner, drawing: Drawing, questions: tuple[Question, ...]) -> Picture:
    return Picture(_encode(pruner, drawing.pixels), drawing.thing, questions)


def _encode(pruner: Pruner, pixels: NDArray[np.uint8]) -> list[Encoded]:
    return pruner.encode([pruner.vision.preprocess(media_from_image(Image.fromarray(pixels)))])


@dataclass(frozen=True)
class Marks:
    """Of every question its kind and whether the answer was right; of every thing whether a patch of it was kept."""

    right: tuple[tuple[str, bool], ...]
    seen: tuple[bool, ...]

    def scores(self) -> dict[str, float]:
        """Share of right answers by kind and over all drawn kinds, and the share of things with a kept patch."""
        kinds = dict.fromkeys(kind for kind, _ in self.right)
        found = {kind: float(np.mean([ok for own, ok in self.right if own == kind])) for kind in kinds}
        overall = [ok for kind, ok in self.right if kind in KINDS]
        return found | {"overall": float(np.mean(overall)), "coverage": float(np.mean(self.seen))}


def examine(
    pruner: Pruner, language: LanguageHalf, pictures: Sequence[Picture], counts: Sequence[int] | None = None
) -> Marks:
    """Ask everything; `counts`: tokens of each picture, where they are not the budget's."""
    right: list[tuple[str, bool]] = []
    seen: list[bool] = []

    def asked() -> Iterator[tuple[TokenSet, Question]]:
        for at, picture in enumerate(pictures):
            (kept,) = pruner.keep(picture.encoded, [counts[at]]) if counts else pruner.prune(picture.encoded)
            seen.extend(coverage(kept, picture.things))
            yield from ((kept, question) for question in picture.questions)

    for batch in batched(asked(), BATCH):
        answers = language.generate([language.embed(q.prompt, [kept]) for kept, q in batch], GENERATION)
        right += [(q.kind, said.text == q.answer) for (_, q), said in zip(batch, answers, strict=True)]
    return Marks(tuple(right), tuple(seen))


def coverage(kept: TokenSet, things: NDArray[np.int8]) -> list[bool]:
    """For each thing of a scene, whether a patch that shows it was kept."""
    shown = things[[i for i in kept.slots if i >= 0]]
    return [bool((shown == thing).any()) for thing in np.unique(things[things >= 0])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Examine the embedded model on held-out scenes.")
    parser.add_argument("--model", default=DEMO)
    parser.add_argument("--per-kind", type=int, default=300, help="questions of each of the seven kinds")
    parser.add_argument("--split", type=int, default=HELD_OUT, help="1: held out; any number above 1: further scenes")
    parser.add_argument("--keep", default="all,11%", help="budgets, comma-separated")
    parser.add_argument("--method", default="prunesid", help="methods, comma-separated")
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    checkpoint = resolve(options.model)
    family = load_family(checkpoint.model_type)
    placement = choose_placement("auto", "auto", "auto", load_config(checkpoint))
    vision, language = family.load_vision_half(checkpoint, placement), family.load_language_half(checkpoint, placement)
    pictures = examination(Pruner(vision, Budget(), "prunesid", ()), options.per_kind, options.split)
    settings = [PruningSetting("all", "prunesid")] if "all" in options.keep.split(",") else []
    settings += [PruningSetting(k, m) for k in options.keep.split(",") if k != "all" for m in options.method.split(",")]
    columns = [*KINDS, "refusal", "overall", "coverage"]
    print(f"{'':24}" + "".join(f"{name:>10}" for name in columns))
    results = {}
    for setting in settings:
        began = time.perf_counter()
        pruner = Pruner(vision, Budget.parse(setting.keep), setting.method, ())
        scores = results[str(setting)] = examine(pruner, language, pictures).scores()
        row = "".join(f"{scores[name]:10.3f}" for name in columns)
        print(f"{str(setting):24}{row}   {time.perf_counter() - began:.0f} s", flush=True)
    if options.out:
        asked = sum(len(picture.questions) for picture in pictures)
        command = "python -m samples.embedded_model.evaluate " + shlex.join(sys.argv[1:])
        facts = {"command": command, "model": checkpoint.revision, "split": options.split, "per_kind": options.per_kind}
        facts |= {"questions": asked, "torch": torch.__version__, "device": str(placement.device)}
        options.out.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
