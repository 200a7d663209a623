"""Original LLaVA checkpoints equal those of transformers, wherever tower and weights are; chat templates; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunesid_cli.errors import ModelError, UnsupportedModel
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import fingerprint, resolve
from prunesid_cli.models.loading.original_processor import CHATML, MISTRAL, choose_chat_template
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.processor import load_processor
from tests.models.harness import CPU, PROMPT, Model, check_keeping_all
from tests.models.tiny.base import TinyModel, tower_pixels
from tests.models.tiny.original import ANYRES, PLAIN, TILE_SETTINGS, build_tokenizer, sibling, write_original


def write_model(folder: Path, tiny: TinyModel = PLAIN, **options: Any) -> Model:
    """Write a checkpoint into a subfolder, next to which its tower is written."""
    write_original(folder / "model", **options)
    return Model(folder / "model", tiny)


def change_config(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def test_a_tower_in_another_repo_is_read(tmp_path: Path) -> None:
    model = write_model(tmp_path, has_tower=False)
    assert not [name for name in load_file(model.folder / "model.safetensors") if "vision_tower" in name]
    for media in model.images():
        check_keeping_all(model, [media], PROMPT)


def test_a_tower_that_lacks_a_weight_is_refused_by_name(tmp_path: Path) -> None:
    model = write_model(tmp_path, has_tower=False)
    path = sibling(model.folder, "tower") / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if "vision_model.encoder.layers.0.mlp.fc1.bias" not in k}, path)
    with pytest.raises(ModelError, match=r"lacks 1 of .* model\.vision_tower\.encoder\.layers\.0\.mlp\.fc1\.bias"):
        load_family("llava").load_vision_half(resolve(str(model.folder)), CPU)


def test_pickled_weights_are_read(tmp_path: Path) -> None:
    """And the folder's fingerprint covers them."""
    model = write_model(tmp_path)
    weights = model.folder / "model.safetensors"
    torch.save(load_file(weights), model.folder / "pytorch_model.bin")
    weights.unlink()
    check_keeping_all(model, model.images()[:1], PROMPT)
    before = fingerprint(model.folder)
    (model.folder / "pytorch_model.bin").write_bytes(b"something else")
    assert fingerprint(model.folder) != before


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    weights = model.folder / "model.safetensors"
    torch.save({**load_file(weights), "more": Malicious()}, model.folder / "pytorch_model.bin")
    weights.unlink()
    for half in ("vision", "language"):
        with pytest.raises(ModelError, match="cannot load"):
            getattr(load_family("llava"), f"load_{half}_half")(resolve(str(model.folder)), CPU)
    assert not Path("evil").exists()


class Malicious:
    def __reduce__(self) -> Any:
        return open, ("evil", "w")


def test_a_projector_of_one_layer(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    weights = load_file(model.folder / "model.safetensors")
    names = {name: name.replace("projector.0.", "projector.") for name in weights if "projector.2." not in name}
    save_file({new: weights[old] for old, new in names.items()}, model.folder / "model.safetensors")
    change_config(model.folder, mm_projector_type="linear")
    tokens = torch.randn(5, 32)
    expected = torch.nn.functional.linear(
        tokens, weights["model.mm_projector.0.weight"], weights["model.mm_projector.0.bias"]
    )
    torch.testing.assert_close(model.language.project(tokens), expected)


def test_chat_templates_are_those_of_training(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    assert model.language.render_chat([{"role": "user", "content": content}]) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nwhat is shown? ASSISTANT:"
    )
    assert choose_chat_template("llava_mistral", tokenizer := build_tokenizer()) == MISTRAL
    tokenizer.add_tokens(["<|im_start|>"])
    assert choose_chat_template("llava", tokenizer) == CHATML


@pytest.mark.parametrize("model_type", ["llava_llama", "llava_mistral"])
def test_all_model_types_of_the_authors_are_read(model_type: str, tmp_path: Path) -> None:
    model = write_model(tmp_path)
    change_config(model.folder, model_type=model_type)
    checkpoint = resolve(str(model.folder))
    config = load_config(checkpoint)
    assert (checkpoint.model_type, config.text_config.model_type) == ("llava", model_type.removeprefix("llava_"))
    assert config.dtype == torch.float16
    assert config.image_token_index == config.text_config.vocab_size


def test_images_are_padded_only_if_the_settings_ask_for_it(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    media = model.images()[1]
    padded = tower_pixels(model.vision.preprocess(media))
    change_config(model.folder, image_aspect_ratio="square")
    plain = load_processor(resolve(str(model.folder))).image_processor(media.image, return_tensors="pt")
    assert padded[0, :, 0].std(-1).max() == 0 != plain["pixel_values"][0, :, 0].std(-1).max()


CHANGES: dict[str, Any] = {
    "mm_projector_type": "mlp3x_gelu",
    "mm_vision_select_feature": "slice",
    "mm_use_im_start_end": True,
    "mm_resampler_type": "perceiver",
    "image_aspect_ratio": "keep",
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_unsupported_settings_are_refused_by_name(name: str, tmp_path: Path) -> None:
    """This happens before weights are read; the folder has none."""
    settings = {"model_type": "llava", "mm_vision_tower": "no/tower", "mm_projector_type": "mlp2x_gelu"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    change_config(tmp_path, **{name: CHANGES[name]})
    with pytest.raises(UnsupportedModel, match=f"{name} {CHANGES[name]!r}"):
        load_family("llava").check_supported(resolve(str(tmp_path)))


def test_unsupported_towers_are_refused_by_name(tmp_path: Path) -> None:
    model = write_model(tmp_path)
    config = sibling(model.folder, "tower") / "config.json"
    config.write_text(json.dumps({"model_type": "siglip", "vision_config": {}}))
    (model.folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="mm_vision_tower"):
        load_family("llava").check_supported(resolve(str(model.folder)))


def test_tile_grids_are_those_of_the_settings(tmp_path: Path) -> None:
    """Type, configuration and processor of LLaVA-1.6."""
    sizes = [[336, 672], [672, 336], [1008, 672]]
    model = write_model(tmp_path, settings=TILE_SETTINGS)
    change_config(model.folder, image_grid_pinpoints=sizes)
    checkpoint = resolve(str(model.folder))
    assert checkpoint.model_type == "llava_next"
    transposed = [[height, width] for width, height in sizes]
    assert load_config(checkpoint).image_grid_pinpoints == transposed
    images = load_processor(checkpoint).image_processor
    assert images.image_grid_pinpoints == transposed
    pixels = images(model.images()[0].image.resize((900, 600)), return_tensors="pt")["pixel_values"]
    assert pixels.shape[1] == 7


def test_an_unsupported_merge_of_tiles_is_refused_by_name(tmp_path: Path) -> None:
    model = write_model(tmp_path, settings=TILE_SETTINGS)
    change_config(model.folder, mm_patch_merge_type="flat")
    with pytest.raises(UnsupportedModel, match="mm_patch_merge_type 'flat'"):
        load_config(resolve(str(model.folder)))


@pytest.mark.slow
@pytest.mark.parametrize("has_tower", [True, False])
def test_tiles_are_the_stock_model(has_tower: bool, tmp_path: Path) -> None:
    model = write_model(tmp_path, ANYRES, settings=TILE_SETTINGS, has_tower=has_tower)
    for media in model.images():
        check_keeping_all(model, [media], PROMPT)
    check_keeping_all(model, model.images()[:2], PROMPT)
