"""Make this folder, and its section in the guide on benchmark results: `python -m samples.benchmark.make`.

Questions of each kind, each about another scene that the embedded model was not trained on, are answered by `prunesid
evaluate` for every method and the paper's budgets. The coverage of things is measured as well. Pictures are drawn from
their seeds. An interrupted run continues from answers.jsonl, which is deleted at the end, since answers become invalid
when a selector changes. Needs `pip install 'prunesid[plot]'`.
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
from prunesid_cli.runtime.batch_size import batched
from prunesid_cli.selection import METHODS
from prunesid_cli.selection.budget import Budget
from samples.benchmark.tell import GUIDE, make_readme, replace_section
from samples.embedded_model.evaluate import coverage
from samples.embedded_model.non_scenes import draw_non_scene

HERE = Path(__file__).parent
SPLIT = 60
"""Split of scenes. 0 is for training and 1 for evaluation of the model; nothing was tuned on this one."""
BUDGETS = ("192", "128", "64", "32", "16")
SETTINGS = (
    PruningSetting("all", "prunesid"),
    *(PruningSetting(keep, method) for method in METHODS for keep in BUDGETS),
)
PER_KIND, ROUND_SIZE = 80, 10
"""Questions of each kind in all and per round of kinds. Rounds make an interrupted run balanced, too."""
BATCH_SIZE = 2 * ROUND_SIZE


@dataclass(frozen=True)
class PictureQuestion:
    """A question about a picture.

    Attributes:
        index: Number of the scene in the split; of the picture that is not a scene, if the kind is "refusal".
        question: The question.
    """

    index: int
    question: Question

    @property
    def file_name(self) -> str:
        """Name of the picture's file."""
        return f"{'other' if self.question.kind == 'refusal' else 'scene'}{self.index}.png"

    def to_line(self, folder: str) -> str:
        """Return the line of the file of questions."""
        question = self.question
        fields = {"prompt": question.prompt, "answer": question.answer, "kind": question.kind}
        return json.dumps({"media": f"{folder}/{self.file_name}"} | fields) + "\n"


def make_questions(per_kind: int) -> Iterator[PictureQuestion]:
    """Yield questions of each kind, no two about the same picture. A larger `per_kind` only adds questions."""
    rng, scenes = np.random.default_rng((SPLIT, 7)), count()
    for start in range(0, per_kind, ROUND_SIZE):
        round_numbers = range(start, min(start + ROUND_SIZE, per_kind))
        for kind in KINDS:
            for _ in round_numbers:
                question = None
                while question is None:
                    index = next(scenes)
                    question = ask_one(make_scene(SPLIT, index), kind, rng)
                yield PictureQuestion(index, question)
        for index in round_numbers:
            yield PictureQuestion(index, ask_about_non_scene(rng, make_scene(SPLIT, index)))


def write_questions(questions: Sequence[PictureQuestion], path: Path) -> list[Drawing]:
    """Write a file of questions and, next to it, their pictures. Returns the drawings of the scenes."""
    folder, drawings = path.parent / "pictures", []
    folder.mkdir(exist_ok=True)
    for item in questions:
        if item.question.kind == "refusal":
            pixels = draw_non_scene(SPLIT, item.index)
        else:
            drawings.append(draw(make_scene(SPLIT, item.index)))
            pixels = drawings[-1].pixels
        Image.fromarray(pixels).save(folder / item.file_name)
    path.write_text("".join(item.to_line(folder.name) for item in questions), encoding="utf-8")
    return drawings


def evaluate(questions: Path, answers: Path, plot: Path) -> list[dict[str, Any]]:
    """Run `prunesid evaluate` and return its JSON record of each setting."""
    options = {
        "--keep": ",".join(("all", *BUDGETS)),
        "--method": ",".join(METHODS),
        "--model": DEMO,
        "--batch-size": str(BATCH_SIZE),
        "--out": str(answers),
        "--plot": str(plot),
    }
    program = [sys.executable, "-m", "prunesid_cli", "evaluate", str(questions), "--json"]
    command = [*program, *(word for pair in options.items() for word in pair)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in result.stdout.splitlines()]


def compare_methods(questions: Path, answers: Path) -> list[dict[str, Any]]:
    """Count the questions that only PruneSID or only a rival answers right, by rival, budget and kind."""
    records, _ = read_records(questions)
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    scores = {(line["setting"], line["key"]): line["score"] for line in lines}

    def count_wins(winner: str, loser: str, kind: str) -> int:
        return sum(scores[winner, record.key] > scores[loser, record.key] for record in records if record.kind == kind)

    comparisons = []
    for rival in SETTINGS[1:]:
        if rival.method == "prunesid":
            continue
        ours, theirs = str(PruningSetting(rival.keep, "prunesid")), str(rival)
        wins = {
            kind: [count_wins(ours, theirs, kind), count_wins(theirs, ours, kind)]
            for kind in dict.fromkeys(record.kind for record in records)
        }
        comparisons.append(asdict(rival) | {"kinds": wins})
    return comparisons


def measure_coverage(drawings: Sequence[Drawing]) -> dict[str, float]:
    """Return the share of things with a kept patch, by setting."""
    checkpoint = resolve(DEMO)
    vision = load_family(checkpoint.model_type).load_vision_half(
        checkpoint, choose_placement("auto", "auto", "auto", load_config(checkpoint))
    )
    pruners = {str(s): Pruner(vision, Budget.parse(s.keep), s.method, ()) for s in SETTINGS}
    covered: dict[str, list[bool]] = defaultdict(list)
    for batch in batched(drawings, BATCH_SIZE):
        media = [media_from_image(Image.fromarray(drawing.pixels)) for drawing in batch]
        encoded = pruners["all"].encode([pruners["all"].preprocess(item) for item in media])
        for name, pruner in pruners.items():
            for tokens, drawing in zip(pruner.prune(encoded), batch, strict=True):
                covered[name] += coverage(tokens, drawing.part)
    return {name: float(np.mean(is_covered)) for name, is_covered in covered.items()}


def describe_run(per_kind: int) -> dict[str, Any]:
    """Return what the figures depend on."""
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
    parser = argparse.ArgumentParser(description="Compare all methods at the paper's budgets, on unseen scenes.")
    parser.add_argument("--per-kind", type=int, default=PER_KIND, help="questions of each of the eight kinds")
    parser.add_argument("--out", type=Path, help="write into another folder, and leave the guide unchanged")
    options = parser.parse_args()
    out = options.out or HERE
    out.mkdir(parents=True, exist_ok=True)
    questions, answers = out / "questions.jsonl", out / "answers.jsonl"
    report = describe_run(options.per_kind) | {"in_one_go": not answers.exists()}
    drawings = write_questions(list(make_questions(options.per_kind)), questions)
    rows = evaluate(questions, answers, out / "plot.png")
    coverages = measure_coverage(drawings)
    report["things"] = sum(len(np.unique(drawing.part[drawing.part >= 0])) for drawing in drawings)
    report["processor_seconds"] = round(processor_seconds())
    report["rows"] = [row | {"coverage": coverages[row["setting"]]} for row in rows]
    report["duels"] = compare_methods(questions, answers)
    write_report(report, out)
    if options.out is None:
        replace_section(GUIDE, report)
    answers.unlink()


def processor_seconds() -> float:
    """Return the CPU time of this process and its children, which other work on the machine does not lengthen."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def write_report(report: dict[str, Any], out: Path) -> None:
    """Write results.json, with one line per entry of a list, and README.md."""
    lines = []
    for name, value in report.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n" + ",\n".join("  " + json.dumps(entry) for entry in value) + "\n ]"
        lines.append(f" {json.dumps(name)}: {text}")
    (out / "results.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    (out / "README.md").write_text(make_readme(report), encoding="utf-8")


if __name__ == "__main__":
    main()
