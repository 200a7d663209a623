"""Make this folder, and its section in the guide on benchmark results: `python -m samples.benchmark.make`.

Questions about scenes that the embedded model was not trained on are answered by `prunesid evaluate` for every method
and budget, by one process per core. Pictures are drawn from their seeds. Questions, pictures and answers are kept in a
folder of `runs` that is named after the code and the model, so that an interrupted run continues, and answers of
another selector are never used. Needs `pip install 'prunesid[plot]'`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

import prunesid_cli
from prunesid_cli.bench.environment import describe_machine, git_commit, package_versions
from prunesid_cli.demo.questions import KINDS, Question, ask_about_non_scene, ask_about_pair, ask_one
from prunesid_cli.demo.scenes import Drawing, Scene, draw, make_hard_scene, make_scene
from prunesid_cli.evaluate.results import PruningSetting
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.selection import METHODS
from samples.benchmark.pages import GUIDE, REFERENCE, make_readme, replace_section
from samples.embedded_model.non_scenes import draw_non_scene
from samples.embedded_model.store import NUM_PATCHES

HERE, RUNS = Path(__file__).parent, Path("runs")
SPLIT = 60
"""Split of scenes. 0 is for training and 1 for evaluation of the model; nothing was tuned on splits from 60 on."""
BUDGETS = ("192", "128", "64", "32", "16", "8")
RIVALS = tuple(PruningSetting(keep, method) for method in METHODS for keep in BUDGETS if method != REFERENCE)
HARD_PER_ROUND, SIMPLE_PER_ROUND, QUESTIONS_PER_ROUND, ROUNDS = 4, 3, 36, 140
"""Questions of a round: of each kind about hard scenes, and about pairs of them; about simple scenes, of one kind after
the other; and altogether, with one about a picture that is not a scene. 140 rounds make 5,040 questions."""
BATCH_SIZE = 20


def draw_other(split: int, index: int) -> Drawing:
    """Draw a picture that is not a scene."""
    return Drawing(draw_non_scene(split, index), np.full(NUM_PATCHES, -1, np.int8))


DRAWERS: dict[str, Callable[[int, int], Drawing]] = {
    "hard": lambda split, index: draw(make_hard_scene(split, index)),
    "simple": lambda split, index: draw(make_scene(split, index)),
    "other": draw_other,
}


@dataclass(frozen=True)
class Picture:
    """A picture of the benchmark.

    Attributes:
        style: A key of `DRAWERS`.
        index: Its number in the split.
    """

    style: str
    index: int

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return f"{self.style}{self.index}.png"


@dataclass(frozen=True)
class PictureQuestion:
    """A question about one or two pictures.

    Attributes:
        kind: The kind of the question if it is about hard scenes; otherwise "simple" or "refusal".
        pictures: The pictures.
        question: The question.
    """

    kind: str
    pictures: tuple[Picture, ...]
    question: Question

    def to_line(self, folder: str) -> str:
        """Return the line of the file of questions."""
        media = [f"{folder}/{picture.file_name}" for picture in self.pictures]
        fields = {"media": media, "prompt": self.question.prompt, "answer": self.question.answer, "kind": self.kind}
        return json.dumps(fields) + "\n"


def make_questions(rounds: int, split: int = SPLIT) -> Iterator[PictureQuestion]:
    """Yield the questions of each round, no two about the same picture. More rounds only add questions."""
    rng, hard, simple, simple_kinds = np.random.default_rng((split, 7)), count(), count(), cycle(KINDS)

    def ask(kind: str, style: str, make: Callable[[int, int], Scene], numbers: Iterator[int]) -> PictureQuestion:
        question = None
        while question is None:
            indices = [next(numbers) for _ in range(1 + (kind == "pair"))]
            first, *second = (make(split, index) for index in indices)
            question = ask_about_pair(first, second[0], rng) if second else ask_one(first, kind, rng)
        pictures = tuple(Picture(style, index) for index in indices)
        return PictureQuestion(kind if style == "hard" else style, pictures, question)

    for number in range(rounds):
        for kind in (*KINDS, "pair"):
            yield from (ask(kind, "hard", make_hard_scene, hard) for _ in range(HARD_PER_ROUND))
        yield from (ask(next(simple_kinds), "simple", make_scene, simple) for _ in range(SIMPLE_PER_ROUND))
        question = ask_about_non_scene(rng, make_hard_scene(split, number))
        yield PictureQuestion("refusal", (Picture("other", number),), question)


def draw_pictures(questions: Sequence[PictureQuestion], split: int, folder: Path) -> dict[str, NDArray[np.int8]]:
    """Write all pictures. Returns, for each file name, the part that each patch shows [576]; see `Scene.parts`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for item in questions:
        for picture in item.pictures:
            drawing = DRAWERS[picture.style](split, picture.index)
            Image.fromarray(drawing.pixels).save(folder / picture.file_name, compress_level=1)
            parts[picture.file_name] = drawing.part
    return parts


def evaluate(questions: Path, answers: Path, *options: str) -> subprocess.Popen[str]:
    """Start `prunesid evaluate --json`, with one thread."""
    settings = {
        "--keep": ",".join(("all", *BUDGETS)),
        "--method": ",".join(METHODS),
        "--model": DEMO,
        "--batch-size": str(BATCH_SIZE),
        "--out": str(answers),
    }
    program = [sys.executable, "-m", "prunesid_cli", "evaluate", str(questions), "--json", *options]
    command = [*program, *(word for pair in settings.items() for word in pair)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def answer(lines: Sequence[str], work: Path, plot: Path) -> list[dict[str, Any]]:
    """Answer all questions, each core its part, and return the JSON record of each setting.

    Args:
        lines: Lines of the file of questions.
        work: Folder for questions and answers; with the pictures of `draw_pictures`.
        plot: File for the plot.
    """
    cores = os.cpu_count() or 1
    running = []
    for core in range(cores):
        part = work / f"questions.{core}.jsonl"
        part.write_text("".join(lines[core::cores]), encoding="utf-8")
        running.append(evaluate(part, work / f"answers.{core}.jsonl"))
    for process in running:
        process.communicate()
    if any(process.returncode for process in running):
        raise SystemExit("the run failed; the same command continues")
    questions, answers = work / "questions.jsonl", work / "answers.jsonl"
    questions.write_text("".join(lines), encoding="utf-8")
    parts = [work / f"answers.{core}.jsonl" for core in range(cores)]
    answers.write_text("".join(part.read_text(encoding="utf-8") for part in parts), encoding="utf-8")
    summary = evaluate(questions, answers, "--plot", str(plot))
    output, _ = summary.communicate()
    if summary.returncode:
        raise SystemExit("the answers could not be summarised")
    return [json.loads(line) for line in output.splitlines()]


def measure_coverage(
    lines: Sequence[dict[str, Any]], parts: dict[str, NDArray[np.int8]]
) -> tuple[dict[str, float], int]:
    """Measure which parts of the scenes have a kept patch.

    Args:
        lines: Lines of the file of answers.
        parts: The part that each patch of a picture shows, by the picture's file name.

    Returns:
        The share of parts with a kept patch by setting, and the number of parts.
    """
    covered: dict[str, list[bool]] = defaultdict(list)
    for line in lines:
        for name, patches in zip(line["media"], line["patches"], strict=True):
            shown = parts[Path(name).name]
            kept = np.ones(NUM_PATCHES, bool)
            if "kept" in patches:
                kept = np.unpackbits(np.frombuffer(bytes.fromhex(patches["kept"]), np.uint8)).astype(bool)
            covered[line["setting"]] += np.isin(np.unique(shown[shown >= 0]), shown[kept]).tolist()
    return {name: float(np.mean(is_covered)) for name, is_covered in covered.items()}, len(covered["all"])


def compare_methods(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count the questions that only the reference or only a rival answers right, by rival, budget and kind.

    Args:
        lines: Lines of the file of answers.
    """
    scores = {(line["setting"], line["key"]): line["score"] for line in lines}
    kinds = {line["key"]: line["kind"] for line in lines}
    comparisons = []
    for rival in RIVALS:
        wins = {kind: [0, 0] for kind in dict.fromkeys(kinds.values())}
        for key, kind in kinds.items():
            ours, theirs = scores[f"{rival.keep} {REFERENCE}", key], scores[str(rival), key]
            wins[kind][0] += ours > theirs
            wins[kind][1] += ours < theirs
        comparisons.append(asdict(rival) | {"kinds": wins})
    return comparisons


def describe_run(rounds: int, split: int) -> dict[str, Any]:
    """Return what the figures depend on."""
    options = ("" if rounds == ROUNDS else f" --rounds {rounds}") + ("" if split == SPLIT else f" --split {split}")
    return {
        "command": f"python -m samples.benchmark.make{options}",
        "split": split,
        "model": resolve(DEMO).revision,
        "machine": describe_machine(torch.device("cpu")),
        "versions": package_versions(),
        "commit": git_commit(),
    }


def digest_run(split: int) -> str:
    """Return a digest of what answers depend on: the pictures, the model and the code."""
    digest = hashlib.blake2b(f"{split} {resolve(DEMO).revision}".encode(), digest_size=6)
    for path in sorted(Path(prunesid_cli.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare all methods at six budgets, on unseen scenes.")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of {QUESTIONS_PER_ROUND} questions")
    parser.add_argument("--split", type=int, default=SPLIT, help="split of the scenes: others give other pictures")
    parser.add_argument("--out", type=Path, help="write into another folder, and leave the guide unchanged")
    options = parser.parse_args()
    out, work = options.out or HERE, (options.out or RUNS) / f"benchmark-{digest_run(options.split)}"
    out.mkdir(parents=True, exist_ok=True)
    report = describe_run(options.rounds, options.split)
    questions = list(make_questions(options.rounds, options.split))
    report["questions"] = Counter(item.kind for item in questions)
    parts = draw_pictures(questions, options.split, work / "pictures")
    rows = answer([item.to_line("pictures") for item in questions], work, out / "plot.png")
    stored = [json.loads(line) for line in (work / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    # A run with more rounds may have left answers about further pictures.
    lines = [line for line in stored if all(Path(name).name in parts for name in line["media"])]
    coverages, report["things"] = measure_coverage(lines, parts)
    report["rows"] = [row | {"coverage": coverages[row["setting"]]} for row in rows]
    report["comparisons"] = compare_methods(lines)
    write_report(report, out)
    if options.out is None:
        replace_section(GUIDE, report)


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
