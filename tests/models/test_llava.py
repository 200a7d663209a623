"""Checkpoints of the type `llava` with other towers: importance, what is not loaded, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.shared.attention_saliency import mean_received_attention
from tests.models.harness import Model
from tests.models.tiny import tiny_model, write_checkpoint

DEEPEST = {"llava": -2, "llava-layers": -1, "llava-pixtral": -1, "llava-siglip": -2, "llava-siglip-last": -1}
"""The layer in whose attention importance is read."""


@pytest.fixture(scope="module", params=sorted(DEEPEST))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))


def test_saliency_is_the_eager_attention(model: Model, request: pytest.FixtureRequest) -> None:
    """Of CLS, where there is one, summed over heads; else what a patch receives, on average."""
    tower, layer = model.stock.model.vision_tower, DEEPEST[request.node.callspec.params["model"]]
    pixels = model.vision.preprocess(model.images()[1])
    with torch.no_grad():
        weights = tower(pixel_values=pixels.tensors["pixel_values"], output_attentions=True).attentions[layer]
    expected = weights.mean((1, 2))[0]
    if model.vision.tower.type.has_cls:
        expected = weights[0, :, 0, 1:].sum(0)
    (item,) = model.vision.encode([pixels])
    mine = torch.cat([one.saliency for one in item.segments])
    if len(item.segments) > 1:
        mine = mine[torch.tensor([slot for one in item.segments for slot in one.slots]).argsort()]
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-5)


def test_nothing_above_the_features_is_loaded(model: Model, request: pytest.FixtureRequest) -> None:
    depth = model.stock.config.vision_config.num_hidden_layers
    assert len(model.vision.tower.layers) == depth + 1 + DEEPEST[request.node.callspec.params["model"]]
    assert not [name for name, _ in model.vision.model.named_parameters() if ".head." in name]


def test_received_attention_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(2, 2, 6, 50, 8).unbind()
    whole = (query * 0.3 @ key.mT).softmax(-1).mean((1, 2))
    for at_once in (10**9, 50 * 50 * 5, 50 * 7, 1):
        monkeypatch.setattr("prunesid_cli.models.shared.attention_saliency.MAX_ATTENTION_WEIGHTS", at_once)
        torch.testing.assert_close(mean_received_attention(query, key, 0.3), whole)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "tower": ({"vision_config": {"model_type": "dinov2", "num_hidden_layers": 2}}, "tower of type 'dinov2'"),
    "layer": ({"vision_feature_layer": -9}, "layers -9 of 4"),
    "embeddings": ({"vision_feature_layer": [-2, 0]}, r"layers \[-2, 0\] of 4"),
    "no layer": ({"vision_feature_layer": []}, r"layers \[\] of 4"),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_what_is_not_known_is_refused_by_name(change: str, tmp_path: Path) -> None:
    """Before weights are read: there are none."""
    settings, said = CHANGES[change]
    refused("llava", settings, said, tmp_path)


def test_a_strategy_that_drops_a_patch_is_refused(tmp_path: Path) -> None:
    refused("llava-siglip", {"vision_feature_select_strategy": "default"}, "leaves out the first patch", tmp_path)


def refused(variant: str, settings: dict[str, Any], said: str, folder: Path) -> None:
    write_checkpoint(variant, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(UnsupportedModel, match=said):
        load_family("llava").check_supported(resolve(str(folder)))
