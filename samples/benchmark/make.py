"""Make this folder, and its section in the guide on benchmark results: `python -m samples.benchmark.make`.

Questions of every kind about scenes that the embedded model has never seen, each about a picture of its own; answered
by `prunesid evaluate` for every method and the paper's budgets; and which things of the scenes have a kept patch. The
pictures are drawn anew from their seeds. A run that was stopped goes on from answers.jsonl, which is deleted at the
end, so that no answer outlives the selector that it came of. Needs `pip install 'prunesid[plot]'`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from prunesid_cli.bench.environment import describe_machine, git_commit, package_versions
from prunesid_cli.demo.questions import KINDS, Question, ask_about_non_scene, ask_one
from prunesid_cli.demo.scenes import Drawing, draw, make_scene
from prunesid_cli.evaluate.records import read_records
from prunesid_cli.evaluate.results import PruningSetting
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection import METHODS
from prunesid_cli.selection.budget import Budget
from samples.benchmark.tell import GUIDE, in_words, put_into
from samples.embedded_model.evaluate import coverage
from samples.embedded_model.non_scenes import draw_non_scene

HERE = Path(__file__).parent
SPLIT = 60
"""Of scenes: 0 was trained on, 1 is what the model was examined on; nothing was tuned on this one."""
BUDGETS = ("192", "128", "64", "32", "16")
SETTINGS = (
    PruningSetting("all", "prunesid"),
    *(PruningSetting(keep, method) for method in METHODS for keep in BUDGETS),
)
PER_KIND, ROUND = 80, 10
"""Questions of each kind, and of each before the next kind comes: a run that was stopped can be told of in part."""
BATCH = 2 * ROUND


@dataclass(frozen=True)
class Asked:
    """A question and the number of its scene, or of its foreign picture (kind `refusal`), in the split."""

    index: int
    question: Question

    @property
    def name(self) -> str:
        return f"{'other' if self.question.kind == 'refusal' else 'scene'}{self.index}.png"

    def line(self, folder: str) -> str:
        said = {name: text for name, text in asdict(self.question).items() if name != "kind"}
        return json.dumps({"media": f"{folder}/{self.name}"} | said | {"kind": self.question.kind}) + "\n"


def make_questions(per_kind: int) -> Iterator[Asked]:
    """`per_kind` questions of each kind, no two about one picture; they begin with those of a smaller one."""
    rng, scenes = np.random.default_rng((SPLIT, 7)), count()
    for start in range(0, per_kind, ROUND):
        turn = range(start, min(start + ROUND, per_kind))
        for kind in KINDS:
            asked = ((index, ask_one(make_scene(SPLIT, index), kind, rng)) for index in scenes)
            fitting = (Asked(index, question) for index, question in asked if question)
            yield from (next(fitting) for _ in turn)
        yield from (Asked(index, ask_about_non_scene(rng, make_scene(SPLIT, index))) for index in turn)


def write_questions(asked: Sequence[Asked], path: Path) -> list[Drawing]:
    """The file of questions and, beside it, their pictures -> the drawings of those that are scenes."""
    folder, drawn = path.parent / "pictures", []
    folder.mkdir(exist_ok=True)
    for one in asked:
        if one.question.kind == "refusal":
            pixels = draw_non_scene(SPLIT, one.index)
        else:
            drawn.append(draw(make_scene(SPLIT, one.index)))
            pixels = drawn[-1].pixels
        Image.fromarray(pixels).save(folder / one.name)
    path.write_text("".join(one.line(folder.name) for one in asked), encoding="utf-8")
    return drawn


def evaluated(questions: Path, answers: Path, plot: Path) -> list[dict[str, Any]]:
    """What `prunesid evaluate --json` says of each setting."""
    options = {
        "--keep": ",".join(("all", *BUDGETS)),
        "--method": ",".join(METHODS),
        "--model": DEMO,
        "--batch-size": str(BATCH),
        "--out": str(answers),
        "--plot": str(plot),
    }
    program = [sys.executable, "-m", "prunesid_cli", "evaluate", str(questions), "--json"]
    command = [*program, *(word for pair in options.items() for word in pair)]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in ran.stdout.splitlines()]


def duels(questions: Path, answers: Path) -> list[dict[str, Any]]:
    """Of each rival and budget, by kind: how many questions PruneSID alone has right, and how many the rival alone."""
    records = read_records(questions)
    said = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    scores = {(one["setting"], one["key"]): one["score"] for one in said}

    def only(winner: str, loser: str, kind: str) -> int:
        return sum(scores[winner, one.key] > scores[loser, one.key] for one in records if one.kind == kind)

    def duel(rival: PruningSetting) -> dict[str, Any]:
        ours, theirs = str(PruningSetting(rival.keep, "prunesid")), str(rival)
        kinds = dict.fromkeys(one.kind for one in records)
        return asdict(rival) | {"kinds": {kind: [only(ours, theirs, kind), only(theirs, ours, kind)] for kind in kinds}}

    return [duel(one) for one in SETTINGS[1:] if one.method != "prunesid"]


def covered(drawn: Sequence[Drawing]) -> dict[str, float]:
    """Of each setting, the share of things with a kept patch."""
    checkpoint = resolve(DEMO)
    vision = load_family(checkpoint.model_type).load_vision_half(
        checkpoint, choose_placement("auto", "auto", "auto", load_config(checkpoint))
    )
    pruners = {str(one): Pruner(vision, Budget.parse(one.keep), one.method, ()) for one in SETTINGS}
    seen: dict[str, list[bool]] = defaultdict(list)
    for at in range(0, len(drawn), BATCH):
        some = drawn[at : at + BATCH]
        media = [media_from_image(Image.fromarray(one.pixels)) for one in some]
        encoded = pruners["all"].encode([pruners["all"].preprocess(one) for one in media])
        for name, pruner in pruners.items():
            for kept, one in zip(pruner.prune(encoded), some, strict=True):
                seen[name] += coverage(kept, one.thing)
    return {name: float(np.mean(some)) for name, some in seen.items()}


def facts(per_kind: int) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "command": "python -m samples.benchmark.make" + ("" if per_kind == PER_KIND else f" --per-kind {per_kind}"),
        "split": SPLIT,
        "per_kind": per_kind,
        "model": resolve(DEMO).revision,
        "machine": describe_machine(torch.device("cpu")),
        "versions": package_versions(),
        "commit": git_commit(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Every method at the paper's budgets, on scenes never seen.")
    parser.add_argument("--per-kind", type=int, default=PER_KIND, help="questions of each of the eight kinds")
    parser.add_argument("--out", type=Path, help="write into another folder, and leave the guide unchanged")
    options = parser.parse_args()
    out = options.out or HERE
    out.mkdir(parents=True, exist_ok=True)
    questions, answers = out / "questions.jsonl", out / "answers.jsonl"
    told = facts(options.per_kind) | {"in_one_go": not answers.exists()}
    drawn = write_questions(list(make_questions(options.per_kind)), questions)
    rows = evaluated(questions, answers, out / "plot.png")
    things = covered(drawn)
    told |= {"things": sum(len(np.unique(one.thing[one.thing >= 0])) for one in drawn)}
    told |= {"processor_seconds": round(processor_seconds())}
    told |= {"rows": [row | {"coverage": things[row["setting"]]} for row in rows]}
    told |= {"duels": duels(questions, answers)}
    write(told, out)
    if options.out is None:
        put_into(GUIDE, told)
    answers.unlink()


def processor_seconds() -> float:
    """Of this process and of those that it waited for; other work on the machine does not lengthen it."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def write(told: dict[str, Any], out: Path) -> None:
    """results.json, an entry a line where there are many; and the same in words."""
    lines = []
    for name, value in told.items():
        many = isinstance(value, list)
        text = "[\n" + ",\n".join("  " + json.dumps(one) for one in value) + "\n ]" if many else json.dumps(value)
        lines.append(f" {json.dumps(name)}: {text}")
    (out / "results.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    (out / "README.md").write_text(in_words(told), encoding="utf-8")


if __name__ == "__main__":
    main()
