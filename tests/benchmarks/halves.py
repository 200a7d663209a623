"""Size of each half of a model: `python -m tests.benchmarks.halves`.

A LLaVA with the real CLIP-L/336 tower and a smaller Llama, with random weights in bf16, is saved, and loaded in three
processes: the whole model by transformers, the vision half, the language half. Prints parameters, seconds and growth of
peak memory of each, and the shares of both halves in LLaVA-1.5-7B, counted from its configuration.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from prunesid_cli.bench.random_models import SHAPES, Shape, llava_config, write_without_weights
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.types import Placement
from tests.benchmarks.memory import growth

PARTS = ("whole", "vision", "language")


SMALLER = Shape(2048, 5504, 8, 16)


def make(folder: Path) -> None:
    write_without_weights(llava_config(SMALLER), folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Llava(LlavaConfig.from_pretrained(folder)).to(torch.bfloat16).save_pretrained(folder)


def load(folder: str, part: str) -> dict[str, Any]:
    """Load a part in a fresh process, and measure that."""
    checkpoint, where = resolve(folder), Placement(torch.device("cpu"), torch.bfloat16, "sdpa")
    family, found = load_family(checkpoint.model_type), dict[str, Any](part=part)

    def work() -> None:
        began = time.perf_counter()
        if part == "whole":
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
        else:
            load_half = family.load_vision_half if part == "vision" else family.load_language_half
            model = load_half(checkpoint, where).model
        found["seconds"] = time.perf_counter() - began
        found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        found["sum"] = sum(float(parameter.sum()) for parameter in model.parameters())  # pages are read when touched

    found["peak_mb"] = growth(work)
    return found


def shares() -> dict[str, float]:
    """Shares of the weights of LLaVA-1.5-7B, by its configuration: the tower with its patch filters, and the rest."""
    with torch.device("meta"):
        model = Llava(llava_config(SHAPES["llava-1.5-7b"]))
    tower = sum(parameter.numel() for parameter in model.model.vision_tower.parameters())
    whole = sum(parameter.numel() for parameter in model.parameters())
    return {"whole": whole, "tower": tower / whole, "projector and language model": 1 - tower / whole}


def main() -> None:
    parser = argparse.ArgumentParser(description="Size of each half of a model.")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(load(*options.part)))
        return
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        found = []
        for part in PARTS:
            command = [sys.executable, "-m", "tests.benchmarks.halves", "--part", folder, part]
            found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
            print(found[-1], flush=True)
    report = {"date": date.today().isoformat(), "command": "python -m tests.benchmarks.halves", "loaded": found}
    report |= {"torch": torch.__version__, "LLaVA-1.5-7B": shares()}
    print(report["LLaVA-1.5-7B"])
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
