"""Tests of the embedded model as it is shipped: its size, and its answers about scenes that it was not trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunesid_cli.demo.questions import KINDS
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import DEMO, DEMO_FOLDER, resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection.budget import Budget
from samples.embedded_model.evaluate import make_exam, run_exam
from tests.conftest import Run

UNSEEN = 77
"""A split of scenes that was used neither in training nor for the figures of the model card."""
SAMPLES = Path(__file__).parents[2] / "samples"


def test_it_is_small_and_in_bf16() -> None:
    from safetensors import safe_open

    assert sum(path.stat().st_size for path in DEMO_FOLDER.iterdir()) <= 12_000_000
    with safe_open(DEMO_FOLDER / "model.safetensors", framework="pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.slow
@pytest.mark.parametrize(("is_hard", "overall", "worst"), [(False, 0.9, 0.7), (True, 0.75, 0.45)])
def test_its_answers_are_right_with_and_without_pruning(is_hard: bool, overall: float, worst: float) -> None:
    checkpoint = resolve(DEMO)
    family = load_family(checkpoint.model_type)
    placement = choose_placement("cpu", "auto", "auto", load_config(checkpoint))
    vision, language = family.load_vision_half(checkpoint, placement), family.load_language_half(checkpoint, placement)
    pictures = make_exam(Pruner(vision, Budget(), "prunesid", ()), 60, UNSEEN, is_hard)
    unpruned = run_exam(Pruner(vision, Budget(), "prunesid", ()), language, pictures).scores()
    pruned = run_exam(Pruner(vision, Budget.parse("11%"), "prunesid", ()), language, pictures).scores()
    # The figures of the model card, less the noise of 60 questions (two standard deviations).
    assert unpruned["overall"] >= overall, unpruned
    assert min(unpruned[kind] for kind in (*KINDS, *(["pair"] if is_hard else []))) >= worst, unpruned
    assert pruned["overall"] >= 0.95 * unpruned["overall"], (unpruned, pruned)
    assert min(unpruned["refusal"], pruned["refusal"]) >= 0.9


def test_ask_without_a_model_names_the_embedded_one(run: Run) -> None:
    ran = run("ask", SAMPLES / "scene5.png", "what is shown?")
    asked = [json.loads(line) for line in (SAMPLES / "questions.jsonl").read_text().splitlines()]
    (expected,) = [q["answer"] for q in asked if "scene5" in q["media"] and "describe" in q["prompt"]]
    assert (ran.code, ran.out.strip()) == (0, expected)
    assert "embedded demo model" in ran.err
    assert "models use" in ran.err


def test_a_picture_that_is_not_a_scene_is_refused(run: Run) -> None:
    ran = run("ask", SAMPLES / "not_a_scene.png", "what is shown?", "-q")
    assert ran.out == "i know only drawn scenes, and this is not one.\n"


def test_a_dynamic_budget_for_one_picture_uses_the_stored_phi(run: Run) -> None:
    kept = {
        run("ask", SAMPLES / f"scene{n}.png", "what is shown?", "-k", "64", "--dynamic", "--json", "-q").records[0][
            "kept"
        ]
        for n in range(1, 7)
    }
    assert len(kept) > 1
    assert all(32 <= count <= 128 for count in kept)
