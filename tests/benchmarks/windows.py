"""Gain and cost of pruning the frames of a clip together: `python -m tests.benchmarks.windows`.

The embedded model reads no clips, but its tower encodes frames, and its language half reads their tokens as those of
one picture. So clips are made of its scenes: eight noisy frames of one scene (a still clip), or of eight scenes. The
benchmark reports how many different patches are kept of a still clip, how many questions about it are answered right,
and how many things in clips of eight scenes have a kept patch: with each frame alone, and with windows at several
similarities from which a token counts as a copy. It also measures the time that one core takes to select from windows
of 576 tokens per frame.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from prunesid_cli.demo.questions import Question, held_out_questions
from prunesid_cli.demo.scenes import HELD_OUT, draw, make_scene
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import DEMO, resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.frame_windows import join_windows
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection.budget import Budget
from prunesid_cli.selection.methods.explanation import explain
from prunesid_cli.selection.methods.prunesid_over_time import prunesid_over_time
from prunesid_cli.selection.prunesid_variants import OVER_TIME
from prunesid_cli.types import Encoded, Layout, Region, TokenSet
from samples.embedded_model.evaluate import GENERATION
from tests.selection.inputs import attention, scene_like

FRAMES, SIDE, WIDTH, NOISE = 8, 24, 1024, 3.0
SIZE = SIDE**2
ALIKE = (None, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True)
class Clip:
    """An encoded clip, the thing that each patch shows by frame [F, 576] (-1: none), and questions about it."""

    encoded: Encoded
    parts: np.ndarray[Any, np.dtype[np.int8]]
    questions: tuple[Question, ...] = ()


def made(vision: Any, numbers: Sequence[int], questions: tuple[Question, ...] = ()) -> Clip:
    """A clip with one frame of each of these scenes."""
    rng, drawings = np.random.default_rng(numbers), [draw(make_scene(HELD_OUT, number)) for number in numbers]
    frames = [np.clip(one.pixels + rng.normal(0, NOISE, one.pixels.shape), 0, 255) for one in drawings]
    seen = vision.encode([vision.preprocess(media_from_image(Image.fromarray(one.astype(np.uint8)))) for one in frames])
    regions = tuple(Region(i * SIZE, SIDE, SIDE, SIDE, time=float(i)) for i in range(len(frames)))
    segments = [
        replace(one.segments[0], cls=None, slots=tuple(region.slots)) for one, region in zip(seen, regions, strict=True)
    ]
    layout = Layout(seen[0].layout.text, (SIZE * len(frames),), regions)
    return Clip(Encoded(tuple(segments), layout), np.stack([one.part for one in drawings]), questions)


def kept_of(clip: Clip, keep: int, alike: float | None) -> TokenSet:
    """Tokens kept with a similarity from which tokens count as copies; None: each frame is pruned alone."""
    if alike is None:
        return Pruner(None, Budget(keep), "prunesid", ()).prune([clip.encoded])[0]  # type: ignore[arg-type]
    variant = replace(OVER_TIME, max_similarity=alike)
    window = replace(join_windows(clip.encoded, FRAMES).segments[0], frames=1)  # so that the method is the one given
    pruner = Pruner(None, Budget(keep), lambda *given: [one.indices for one in explain(*given[:3], variant)], ())  # type: ignore[arg-type]
    return pruner.prune([replace(clip.encoded, segments=(window,))])[0]


def covered(clip: Clip, kept: TokenSet) -> list[bool]:
    shown = clip.parts.ravel()[list(kept.slots)]
    frames = np.array(kept.slots) // SIZE
    wanted = {(frame, thing) for frame, own in enumerate(clip.parts) for thing in np.unique(own[own >= 0])}
    found = set(zip(frames.tolist(), shown.tolist(), strict=True))
    return [one in found for one in wanted]


def compared(vision: Any, language: Any, per_kind: int, keeps: Sequence[int]) -> Iterator[dict[str, Any]]:
    asked: dict[int, list[Question]] = {}
    for index, question in held_out_questions(4 * per_kind, per_kind, HELD_OUT):
        asked.setdefault(index, []).append(question)
    stills = [made(vision, [index] * FRAMES, tuple(questions)) for index, questions in asked.items()]
    scenes = [made(vision, range(at, at + FRAMES)) for at in range(0, 16 * FRAMES, FRAMES)]
    print(f"{'kept':>5} {'copies from':>12} {'patches':>8} {'answers':>8} {'things of scenes':>17}")
    for keep in keeps:
        for alike in ALIKE:
            found = [(clip, kept_of(clip, keep, alike)) for clip in stills]
            patches = statistics.mean(len({slot % SIZE for slot in kept.slots}) for _, kept in found)
            right = [right for clip, kept in found for right in answered(language, clip, kept)]
            things = [one for clip in scenes for one in covered(clip, kept_of(clip, keep, alike))]
            told = {"kept": keep, "alike": alike, "patches": patches, "questions": len(right)}
            told |= {"right": statistics.mean(right), "things": statistics.mean(things)}
            name = "each alone" if alike is None else alike
            print(f"{keep:5} {name:>12} {patches:8.1f} {told['right']:8.3f} {told['things']:17.3f}", flush=True)
            yield told


def answered(language: Any, clip: Clip, kept: TokenSet) -> list[bool]:
    """Asks as about one picture, which the language half was trained for."""
    regions = tuple(replace(region, time=None) for region in kept.layout.regions)
    item = replace(kept, layout=replace(kept.layout, regions=regions))
    prompts = [language.embed(question.prompt, [item]) for question in clip.questions]
    answers = language.generate(prompts, GENERATION)
    return [said.text == question.answer for said, question in zip(answers, clip.questions, strict=True)]


def timed(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Times of windows whose frames all differ, and of windows of a still scene: those cost the most in NMS."""
    for frames in counts:
        seen = torch.cat([scene_like(seed, SIZE, WIDTH) for seed in range(frames)], 1)
        still = scene_like(0, SIZE, WIDTH).repeat(1, frames, 1)
        saliency = torch.cat([attention(seed, SIZE) for seed in range(frames)], 1)
        told: dict[str, Any] = {"frames": frames, "tokens": frames * SIZE}
        for name, features in (("scenes_ms", seen), ("still_ms", still)):
            told[name] = 1000 * min(_seconds(features, saliency) for _ in range(3))
        took = f"{told['scenes_ms']:6.0f} ms, still {told['still_ms']:6.0f} ms"
        print(f"{frames:3} frames, {told['tokens']:5} tokens: {took}", flush=True)
        yield told


def _seconds(features: torch.Tensor, saliency: torch.Tensor) -> float:
    began = time.process_time()
    prunesid_over_time(features, saliency, [round(0.11 * features.shape[1])])
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="Gain and cost of windows of frames on the embedded model.")
    parser.add_argument("--per-kind", type=int, default=20, help="questions of each of the seven kinds")
    parser.add_argument("--keeps", type=int, nargs="*", default=[64, 507], help="tokens of a clip of 8 frames")
    parser.add_argument("--frames", type=int, nargs="*", default=[1, 2, 4, 8, 14], help="frames of the timed windows")
    parser.add_argument("--out", type=Path, help="write JSON here")
    options = parser.parse_args()
    results: dict[str, Any] = {"time": list(timed(options.frames))}
    if options.keeps:
        checkpoint = resolve(DEMO)
        family = load_family(checkpoint.model_type)
        where = choose_placement("cpu", "auto", "auto", load_config(checkpoint))
        halves = family.load_vision_half(checkpoint, where), family.load_language_half(checkpoint, where)
        results["kept"] = list(compared(*halves, options.per_kind, options.keeps))
    if options.out:
        command = f"python -m tests.benchmarks.windows --per-kind {options.per_kind}"
        facts = {"command": command, "torch": torch.__version__, "threads": torch.get_num_threads()}
        options.out.write_text(json.dumps(facts | results, indent=1) + "\n")


if __name__ == "__main__":
    main()
