"""Mini-Gemini: saliency, towers in folders of their own, prompts, tiles, and which checkpoints are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunesid_cli.errors import ModelError, UnsupportedModel
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.mini_gemini.model import HighResolutionTower, build_projector
from tests.models.harness import CPU, make_image
from tests.models.tiny import write_checkpoint
from tests.models.tiny.mgm import CONVNEXT
from tests.models.tiny.mgm_reference import load_reference

CLIP_NAMES = "model.vision_tower.vision_tower."
CONVNEXT_NAMES = "model.vision_tower_aux.vision_"


def vision(folder: Path) -> Any:
    checkpoint = resolve(str(folder))
    return load_family(checkpoint.model_type).load_vision_half(checkpoint, CPU)


def tokens(folder: Path) -> torch.Tensor:
    half = vision(folder)
    (encoded,) = half.encode([half.preprocess(media_from_image(make_image(3, (300, 200))))])
    return torch.cat([segment.features for segment in encoded.segments])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return write_checkpoint("mini_gemini", tmp_path / "model")


def change(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def split_towers(folder: Path, suffix: str = "safetensors") -> Path:
    """Move the towers' weights into folders like their own repositories. Returns the folder of ConvNeXt."""
    weights = load_file(folder / "model.safetensors")
    clip = {name.removeprefix(CLIP_NAMES): weights.pop(name) for name in list(weights) if CLIP_NAMES in name}
    convnext = {
        name.replace(CONVNEXT_NAMES, "visual.trunk."): weights.pop(name)
        for name in list(weights)
        if CONVNEXT_NAMES in name
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    save_file(clip, Path(json.loads((folder / "config.json").read_text())["mm_vision_tower"]) / "model.safetensors")
    convnext_folder = folder / CONVNEXT
    convnext_folder.mkdir()
    save_file(convnext | {"visual.head.proj.weight": torch.ones(1)}, convnext_folder / f"open_clip_model.{suffix}")
    return convnext_folder


@pytest.mark.parametrize("name", ["mgm", "mgm-hd"])
def test_saliency_is_the_eager_attention_of_cls(name: str, tmp_path: Path) -> None:
    reference, half = load_reference(write_checkpoint(name, tmp_path)), vision(tmp_path)
    pixels = half.preprocess(media_from_image(make_image(1, (400, 300))))
    views: list[torch.Tensor] = []
    hook = half.model.vision_tower.register_forward_pre_hook(lambda module, args: views.append(args[0]))
    (encoded,) = half.encode([pixels])
    hook.remove()
    with torch.no_grad():
        attention = reference.clip(views[0], output_attentions=True).attentions[-2]
    expected = attention.sum(1)[:, 0, 1:]
    assert len(encoded.segments) == len(expected) == (5 if name == "mgm-hd" else 1)
    for segment, saliency in zip(encoded.segments, expected, strict=True):
        torch.testing.assert_close(segment.saliency, saliency, atol=1e-5, rtol=0.0)


def test_layers_above_the_one_that_is_read_are_left_out(checkpoint: Path) -> None:
    half = vision(checkpoint)
    assert len(half.model.clip.encoder.layers) == 3
    assert sum(p.is_meta for p in [*half.model.parameters(), *half.model.buffers()]) == 0


def test_towers_in_folders_of_their_own(checkpoint: Path) -> None:
    expected = tokens(checkpoint)
    split_towers(checkpoint)
    assert torch.equal(tokens(checkpoint), expected)


def test_a_pickled_tower_is_refused_with_how_to_convert_it(checkpoint: Path) -> None:
    folder = split_towers(checkpoint, "bin")
    with pytest.raises(ModelError, match="no safetensors of the vision tower") as raised:
        vision(checkpoint)
    assert str(folder) in raised.value.problem
    assert "open_clip_model.safetensors" in raised.value.hint


def test_a_checkpoint_of_pickles_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    with pytest.raises(ModelError, match="has no safetensors"):
        vision(checkpoint)


def test_a_tower_that_is_nowhere_is_refused_by_name(checkpoint: Path) -> None:
    change(checkpoint, mm_vision_tower="model_zoo/OpenAI/clip-vit-of-ours")
    with pytest.raises(ModelError, match="needs the vision tower model_zoo/OpenAI/clip-vit-of-ours"):
        vision(checkpoint)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("mm_vision_tower", "model_zoo/eva_clip_g"),
        ("mm_vision_tower_aux", "model_zoo/OpenAI/clip-vit-large-patch14-336"),
        ("mm_vision_tower_aux", "model_zoo/OpenAI/openclip-convnext-xxlarge"),
        ("mm_vision_tower_aux", None),
        ("mm_vision_select_feature", "cls_patch"),
        ("mm_use_im_start_end", True),
        ("mm_projector_type", "identity"),
    ],
)
def test_what_is_refused_before_weights_are_read(setting: str, value: object, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    change(checkpoint, **{setting: value})
    checkpoint = resolve(str(checkpoint))
    with pytest.raises(UnsupportedModel, match=str(value)):
        load_family(checkpoint.model_type).check_supported(checkpoint)


def test_patches_that_are_not_whole_are_refused(checkpoint: Path) -> None:
    change(checkpoint, image_size_aux=250)
    with pytest.raises(UnsupportedModel, match="image_size_aux 250"):
        vision(checkpoint)


def test_vicuna_is_prompted_as_it_was_trained(checkpoint: Path) -> None:
    checkpoint = resolve(str(checkpoint))
    half = load_family(checkpoint.model_type).load_language_half(checkpoint, CPU)
    text = half.render_chat([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "how many?"}]}])
    assert text.endswith("to the user's questions. USER: <image>\nhow many? ASSISTANT:")


def test_the_template_of_the_checkpoint_comes_first(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    checkpoint = resolve(str(checkpoint))
    half = load_family(checkpoint.model_type).load_language_half(checkpoint, CPU)
    assert half.render_chat([{"role": "user", "content": [{"type": "image"}]}]) == "<image>\n!"


def test_tiles_of_a_padded_picture_know_what_they_show(tmp_path: Path) -> None:
    half = vision(write_checkpoint("mgm-hd", tmp_path))
    layout = half.preprocess(media_from_image(make_image(1, (400, 200)))).layout
    assert layout.total == 5 * 64
    assert [region.box for region in layout.regions] == [
        (0.0, -0.5, 1.0, 1.5),
        (0.0, -0.5, 0.5, 0.5),
        (0.5, -0.5, 1.0, 0.5),
        (0.0, 0.5, 0.5, 1.5),
        (0.5, 0.5, 1.0, 1.5),
    ]


def test_what_the_large_picture_shows_moves_the_tokens(checkpoint: Path) -> None:
    """Otherwise the tests of all families would not test the second tower."""
    before, weights = tokens(checkpoint), load_file(checkpoint / "model.safetensors")
    name = "model.vision_tower_aux.vision_stages.3.blocks.0.mlp.fc2.weight"
    save_file(weights | {name: -weights[name]}, checkpoint / "model.safetensors", {"format": "pt"})
    assert (tokens(checkpoint) - before).abs().max() > 0.1


def test_the_tower_of_the_released_checkpoints_has_its_size() -> None:
    with torch.device("meta"):
        tower = HighResolutionTower((192, 384, 768, 1536), (3, 3, 27, 3))
    assert len(tower.state_dict()) == 340  # as timm's convnext_large, less its head
    assert sum(weight.numel() for weight in tower.parameters()) == 196_227_264


@pytest.mark.parametrize(("kind", "linears"), [("linear", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_projectors(kind: str, linears: int) -> None:
    projector = build_projector(kind, 4, 8)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in projector.modules()) == linears
    assert projector(torch.ones(2, 4)).shape == (2, 8)
