"""Loading the two halves of every family: which weights each one holds, what is refused, dtypes and shards."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunesid_cli.errors import ModelError
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection.budget import Budget
from tests.models.harness import CPU, GENERATION, PROMPT, Model

WEIGHT_OF_HALF = {
    "language": r"^(?!.*(vision|visual|image_tower|audio)).*layers\.1\.\w*attn\.\w+\.weight",
    "vision": r"((vision|visual|image_tower).*|^blocks)(\.0\..*(qkv|q_proj|to_q|attn\.proj)\S*|patch_dense)\.weight",
}
"""Half -> the names of some of its weights. The one model without a tower has a dense layer for patches."""


def test_the_family_of_a_model_supports_it(model: Model) -> None:
    checkpoint = resolve(str(model.folder))
    load_family(checkpoint.model_type).check_supported(checkpoint)


def test_a_half_holds_no_layers_of_the_other_half(model: Model) -> None:
    """What both halves may hold besides is small: norms, patch filters, one word."""
    text_layers = r"(language|text)_model\.layers"
    tower_layers = r"(vision_tower|vision_model|visual|image_tower|video_tower).*(layers?|blocks)\.\d"
    text = [name for name, _ in model.vision.model.named_parameters() if re.search(text_layers, name)]
    tower = [name for name, _ in model.language.model.named_parameters() if re.search(tower_layers, name)]
    assert (text, tower) == ([], [])


def test_the_check_of_a_family_accepts_its_models(model: Model) -> None:
    checkpoint = resolve(str(model.folder))
    load_family(checkpoint.model_type).check_supported(checkpoint)


def test_missing_weights_are_refused_by_name(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model.folder, folder)
    weights = load_file(folder / "model.safetensors")
    for half, pattern in WEIGHT_OF_HALF.items():
        missing = next(name for name in weights if re.search(pattern, name))
        others = {name: tensor for name, tensor in weights.items() if name != missing}
        save_file(others, folder / "model.safetensors", {"format": "pt"})
        checkpoint = resolve(str(folder))
        with pytest.raises(ModelError, match=r"lacks \d of the weights"):
            getattr(load_family(checkpoint.model_type), f"load_{half}_half")(checkpoint, CPU)


def test_sharded_checkpoints_load(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    model.stock.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    for path in model.folder.iterdir():
        if "safetensors" not in path.name and not (folder / path.name).exists():
            shutil.copy(path, folder)
    checkpoint = resolve(str(folder))
    family = load_family(checkpoint.model_type)
    for half in ("vision", "language"):
        whole = getattr(model, half).model
        sharded = getattr(family, f"load_{half}_half")(checkpoint, CPU).model
        for (name, a), (_, b) in zip(whole.named_parameters(), sharded.named_parameters(), strict=True):
            assert a.shape == b.shape
            assert torch.equal(a, b) or "embed_tokens" in name or "lm_head" in name, name


def test_auto_placement_on_a_cpu_is_exact(model: Model) -> None:
    assert choose_placement("cpu", "auto", "auto", load_config(resolve(str(model.folder)))) == CPU


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_half_precision_runs(model: Model, dtype: torch.dtype) -> None:
    checkpoint, placement = resolve(str(model.folder)), replace(CPU, dtype=dtype)
    family = load_family(checkpoint.model_type)
    vision = family.load_vision_half(checkpoint, placement)
    language = family.load_language_half(checkpoint, placement)
    pruner = Pruner(vision, Budget.parse("23"), "prunesid", ())
    items = pruner.prune(pruner.encode([vision.preprocess(model.media()[-1])]))
    assert items[0].tokens.dtype == dtype
    answers = language.generate([language.embed(PROMPT, items)], GENERATION)
    assert answers[0].new_tokens > 0
