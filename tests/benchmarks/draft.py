"""What `compress --draft` saves and changes on the embedded model: `python -m tests.benchmarks.draft`.

Held-out scenes are enlarged to a number of megapixels, given sensor noise, and saved as JPEG (quality 90). Each is
decoded and preprocessed for the tower (336 x 336): at full size, and drafted to at least 1, 2 (as the option does) or 4
times that side. Reports the CPU time, the mean difference of pixels from those of the full decode (0 to 255), and the
share of tokens kept at 11 % that are other ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene
from prunesid_cli.inputs.image import load_image_bytes
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.pixel_scale import upload_pixels
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection.budget import Budget
from prunesid_cli.types import Placement

TIMES = (4, 2, 1)
NOISE = 4.0


def photograph(number: int, megapixels: float) -> bytes:
    side, rng = round((megapixels * 1e6) ** 0.5), np.random.default_rng(number)
    large = Image.fromarray(draw(make_scene(HELD_OUT, number)).pixels).resize((side, side), Image.Resampling.BICUBIC)
    rough = np.asarray(large, np.float32) + rng.normal(0, NOISE, (side, side, 1)).astype(np.float32)
    out = BytesIO()
    Image.fromarray(np.clip(rough, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def seen(pruner: Pruner, data: bytes, min_decode_side: int | None) -> tuple[float, torch.Tensor, frozenset[int]]:
    """Seconds, pixels as input of the tower, and the slots that are kept."""
    began = time.process_time()
    pixels = pruner.preprocess(load_image_bytes(data, "photograph", "-", min_decode_side))
    seconds = time.process_time() - began
    (kept,) = pruner.prune(pruner.encode([pixels]))
    return seconds, upload_pixels([pixels], Placement(torch.device("cpu"), torch.float32, None)), frozenset(kept.slots)


def compared(pruner: Pruner, megapixels: float, count: int) -> Iterator[dict[str, Any]]:
    side = getattr(pruner.vision, "fixed_short_side", None)
    assert side
    step = 255 * torch.tensor(pruner.vision.processor.image_processor.image_std).view(3, 1, 1)  # type: ignore[attr-defined]
    photographs = [photograph(number, megapixels) for number in range(count)]
    whole = [seen(pruner, one, None) for one in photographs]
    for times in (None, *TIMES):
        found = whole if times is None else [seen(pruner, one, times * side) for one in photographs]
        pairs = list(zip(found, whole, strict=True))
        differences = [float(((ours[1] - theirs[1]) * step).abs().mean()) for ours, theirs in pairs]
        other = [len(theirs[2] - ours[2]) / len(theirs[2]) for ours, theirs in pairs]
        told = {"megapixels": megapixels, "images": count, "times": times}
        told |= {"ms": 1000 * statistics.median(one[0] for one in found), "steps": statistics.mean(differences)}
        told |= {"changed": statistics.mean(share > 0 for share in other), "tokens": statistics.mean(other)}
        name = "whole" if times is None else f"{times} x"
        kept = f"kept set changed in {told['changed']:.0%}, by {told['tokens']:.1%} of its tokens"
        apart = f"{told['ms']:5.0f} ms, {told['steps']:.2f} of 255 apart"
        print(f"{megapixels:4g} MP {name:>6}: {apart}, {kept}", flush=True)
        yield told


def run(sizes: Sequence[float], count: int) -> list[dict[str, Any]]:
    checkpoint = resolve(DEMO)
    where = choose_placement("cpu", "auto", "auto", load_config(checkpoint))
    vision = load_family(checkpoint.model_type).load_vision_half(checkpoint, where)
    pruner = Pruner(vision, Budget.parse("11%"), "prunesid", ())
    return [told for size in sizes for told in compared(pruner, size, count)]


def main() -> None:
    parser = argparse.ArgumentParser(description="What --draft saves and changes.")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[12, 48])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    results = run(options.megapixels, options.images)
    if options.out:
        facts = {"command": f"python -m tests.benchmarks.draft --images {options.images}", "torch": torch.__version__}
        options.out.write_text(json.dumps(facts | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
