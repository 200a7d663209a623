"""LLaVA-1.5 with all its towers: saliency, layers that are not loaded, and which checkpoints are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.shared.registered_attention import mean_received_attention
from tests.models.harness import Model, check_keeping_all
from tests.models.tiny import tiny_model, write_checkpoint
from tests.models.tiny.base import tower_pixels

SALIENCY_LAYER = {"llava": -2, "llava-layers": -1, "llava-pixtral": -1, "llava-siglip": -2, "llava-siglip-last": -1}
"""The layer whose attention gives the saliency."""


@pytest.fixture(scope="module", params=sorted(SALIENCY_LAYER))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))


def test_saliency_is_the_eager_attention(model: Model, request: pytest.FixtureRequest) -> None:
    """Attention of CLS, summed over heads; without CLS, the mean attention that a patch receives."""
    tower, layer = model.stock.model.vision_tower, SALIENCY_LAYER[request.node.callspec.params["model"]]
    pixels = model.vision.preprocess(model.images()[1])
    with torch.no_grad():
        weights = tower(pixel_values=tower_pixels(pixels), output_attentions=True).attentions[layer]
    expected = weights.mean((1, 2))[0]
    if model.vision.tower.type.has_cls:
        expected = weights[0, :, 0, 1:].sum(0)
    (item,) = model.vision.encode([pixels])
    saliency = torch.cat([segment.saliency for segment in item.segments])
    if len(item.segments) > 1:
        saliency = saliency[torch.tensor([slot for segment in item.segments for slot in segment.slots]).argsort()]
    torch.testing.assert_close(saliency, expected, atol=1e-5, rtol=1e-5)


def test_nothing_above_the_features_is_loaded(model: Model, request: pytest.FixtureRequest) -> None:
    depth = model.stock.config.vision_config.num_hidden_layers
    assert len(model.vision.tower.layers) == depth + 1 + SALIENCY_LAYER[request.node.callspec.params["model"]]
    assert not [name for name, _ in model.vision.model.named_parameters() if ".head." in name]


def test_received_attention_is_the_same_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(2, 2, 6, 50, 8).unbind()
    expected = (query * 0.3 @ key.mT).softmax(-1).mean((1, 2))
    for max_weights in (10**9, 50 * 50 * 5, 50 * 7, 1):
        monkeypatch.setattr("prunesid_cli.models.shared.registered_attention.MAX_ATTENTION_WEIGHTS", max_weights)
        torch.testing.assert_close(mean_received_attention(query, key, 0.3), expected)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "tower": ({"vision_config": {"model_type": "dinov2", "num_hidden_layers": 2}}, "tower of type 'dinov2'"),
    "layer": ({"vision_feature_layer": -9}, "layers -9 of 4"),
    "embeddings": ({"vision_feature_layer": [-2, 0]}, r"layers \[-2, 0\] of 4"),
    "no layer": ({"vision_feature_layer": []}, r"layers \[\] of 4"),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_unknown_variants_are_refused_by_name(change: str, tmp_path: Path) -> None:
    """They are refused before weights are read: the weights are missing."""
    settings, message = CHANGES[change]
    check_refused("llava", settings, message, tmp_path)


def test_a_strategy_that_drops_a_patch_is_refused(tmp_path: Path) -> None:
    check_refused("llava-siglip", {"vision_feature_select_strategy": "default"}, "leaves out the first patch", tmp_path)


def check_refused(variant: str, settings: dict[str, Any], message: str, folder: Path) -> None:
    write_checkpoint(variant, folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    with pytest.raises(UnsupportedModel, match=message):
        load_family("llava").check_supported(resolve(str(folder)))


def test_the_generation_settings_of_a_checkpoint_hold(tmp_path: Path) -> None:
    """They see the ids of the prompt, as in the stock model."""
    model = Model(write_checkpoint("llava", tmp_path / "model"), tiny_model("llava"))
    path = model.folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"repetition_penalty": 1.7}))
    assert model.language.model.generation_config.repetition_penalty == 1.7
    for media in model.images():
        check_keeping_all(model, [media], "what is a red square and a blue circle? what is shown?")
