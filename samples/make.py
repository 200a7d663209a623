"""Make everything in this folder: `python -m samples.make`, with the package installed.

Six held-out scenes, questions about them with their answers, a picture that is not a scene, and `kept.png`: one scene
with its dropped patches dimmed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from prunesid_cli.demo.questions import ask_all
from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene
from samples.embedded_model.non_scenes import draw_non_scene

HERE = Path(__file__).parent
SCENE_INDICES = range(9000, 9006)


def main() -> None:
    rng = np.random.default_rng(0)
    lines = []
    for number, index in enumerate(SCENE_INDICES, 1):
        scene = make_scene(HELD_OUT, index, count=2 + number % 2)
        name = f"scene{number}.png"
        Image.fromarray(draw(scene).pixels).save(HERE / name, optimize=True)
        for question in ask_all(scene, rng):
            lines.append({"media": name} | asdict(question))
    (HERE / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    Image.fromarray(draw_non_scene(HELD_OUT, 9011)).save(HERE / "not_a_scene.png", optimize=True)
    show = [sys.executable, "-m", "prunesid_cli", "show", "scene5.png", "-m", "demo", "--out", "kept.png"]
    subprocess.run(show, cwd=HERE, check=True)


if __name__ == "__main__":
    main()
