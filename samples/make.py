"""Make everything in this folder: `python samples/make.py`, with the package installed.

Six held-out scenes, questions about them with their answers, a picture that is no scene, and `kept.png`: one scene
with the patches dimmed that `--keep 11%` does not keep.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from prunesid_cli.demo.others import draw_other
from prunesid_cli.demo.questions import ask_all
from prunesid_cli.demo.scenes import GRID, HELD_OUT, PATCH, draw, make_scene

HERE = Path(__file__).parent
SCENES = range(9000, 9006)


def main() -> None:
    rng = np.random.default_rng(0)
    lines = []
    for number, index in enumerate(SCENES, 1):
        scene = make_scene(HELD_OUT, index, count=2 + number % 2)
        name = f"scene{number}.png"
        Image.fromarray(draw(scene).pixels).save(HERE / name, optimize=True)
        for question in ask_all(scene, rng):
            lines.append({"source": f"samples/{name}", "prompt": question.prompt, "expected": question.answer})
    (HERE / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    Image.fromarray(draw_other(HELD_OUT, 9011)).save(HERE / "not_a_scene.png", optimize=True)
    draw_kept(HERE / "scene5.png", "11%").save(HERE / "kept.png", optimize=True)


def draw_kept(path: Path, keep: str) -> Image.Image:
    """The picture beside itself with the patches dimmed that the embedded model's language half never sees."""
    from prunesid_cli.families import load_family
    from prunesid_cli.families.checkpoint import DEMO, resolve
    from prunesid_cli.families.loading import load_config, place
    from prunesid_cli.media import in_memory
    from prunesid_cli.pruner import Pruner
    from prunesid_cli.selection.budget import Budget

    checkpoint = resolve(DEMO)
    vision = load_family(checkpoint.model_type).vision(
        checkpoint, place("cpu", "auto", "auto", load_config(checkpoint))
    )
    pruner = Pruner(vision, Budget.parse(keep), "prunesid", ())
    image = Image.open(path).convert("RGB")
    (kept,) = pruner.prune(pruner.encode([vision.preprocess(in_memory(image))]))
    light = np.full(GRID * GRID, 0.28)
    light[[i for i in kept.slots if i >= 0]] = 1
    mask = light.reshape(GRID, GRID).repeat(PATCH, 0).repeat(PATCH, 1)[..., None]
    pixels = np.asarray(image)
    return Image.fromarray(np.concatenate([pixels, (pixels * mask).astype(np.uint8)], 1))


if __name__ == "__main__":
    main()
