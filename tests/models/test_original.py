"""Original LLaVA checkpoints: as transformers' own, wherever tower and weights are; how they chat; what is refused."""

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
from tests.models.test_laws import CPU, PROMPT, Model, keep_all
from tests.models.tiny.base import Tiny
from tests.models.tiny.original import ANYRES, PLAIN, TILES, beside, original, tokenizer


def made(folder: Path, own: Tiny = PLAIN, **generation: Any) -> Model:
    """In a folder of its own, for what stands beside it."""
    original(folder / "model", **generation)
    return Model(folder / "model", own)


def changed(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def test_a_tower_of_another_repo_is_the_stock_model(tmp_path: Path) -> None:
    model = made(tmp_path, tower_inside=False)
    assert not [name for name in load_file(model.folder / "model.safetensors") if "vision_tower" in name]
    for one in model.pictures():
        keep_all(model, [one], PROMPT)


def test_a_tower_that_lacks_a_weight_is_refused_by_name(tmp_path: Path) -> None:
    model = made(tmp_path, tower_inside=False)
    path = beside(model.folder, "tower") / "model.safetensors"
    weights = load_file(path)
    save_file({k: v for k, v in weights.items() if "vision_model.encoder.layers.0.mlp.fc1.bias" not in k}, path)
    with pytest.raises(ModelError, match=r"lacks 1 of .* model\.vision_tower\.encoder\.layers\.0\.mlp\.fc1\.bias"):
        load_family("llava").load_vision_half(resolve(str(model.folder)), CPU)


def test_pickled_weights_are_read(tmp_path: Path) -> None:
    """The folder's fingerprint knows them."""
    model = made(tmp_path)
    weights = model.folder / "model.safetensors"
    torch.save(load_file(weights), model.folder / "pytorch_model.bin")
    weights.unlink()
    keep_all(model, model.pictures()[:1], PROMPT)
    before = fingerprint(model.folder)
    (model.folder / "pytorch_model.bin").write_bytes(b"something else")
    assert fingerprint(model.folder) != before


def test_pickles_that_run_code_are_refused(tmp_path: Path) -> None:
    model = made(tmp_path)
    weights = model.folder / "model.safetensors"
    torch.save({**load_file(weights), "more": Evil()}, model.folder / "pytorch_model.bin")
    weights.unlink()
    for half in ("vision", "language"):
        with pytest.raises(ModelError, match="cannot load"):
            getattr(load_family("llava"), f"load_{half}_half")(resolve(str(model.folder)), CPU)
    assert not Path("evil").exists()


class Evil:
    def __reduce__(self) -> Any:
        return open, ("evil", "w")


def test_a_projector_of_one_layer(tmp_path: Path) -> None:
    model = made(tmp_path)
    weights = load_file(model.folder / "model.safetensors")
    names = {name: name.replace("projector.0.", "projector.") for name in weights if "projector.2." not in name}
    save_file({new: weights[old] for old, new in names.items()}, model.folder / "model.safetensors")
    changed(model.folder, mm_projector_type="linear")
    tokens = torch.randn(5, 32)
    expected = torch.nn.functional.linear(
        tokens, weights["model.mm_projector.0.weight"], weights["model.mm_projector.0.bias"]
    )
    torch.testing.assert_close(model.language.project(tokens), expected)


def test_how_they_chat(tmp_path: Path) -> None:
    model = made(tmp_path)
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    assert model.language.render_chat([{"role": "user", "content": content}]) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: <image>\nwhat is shown? ASSISTANT:"
    )
    assert choose_chat_template("llava_mistral", words := tokenizer()) == MISTRAL
    words.add_tokens(["<|im_start|>"])
    assert choose_chat_template("llava", words) == CHATML


@pytest.mark.parametrize("kind", ["llava_llama", "llava_mistral"])
def test_other_names_of_the_type(kind: str, tmp_path: Path) -> None:
    model = made(tmp_path)
    changed(model.folder, model_type=kind)
    found = resolve(str(model.folder))
    config = load_config(found)
    assert (found.model_type, config.text_config.model_type) == ("llava", kind.removeprefix("llava_"))
    assert config.dtype == torch.float16
    assert config.image_token_index == config.text_config.vocab_size


def test_pictures_are_padded_only_where_settings_say_so(tmp_path: Path) -> None:
    model = made(tmp_path)
    picture = model.pictures()[1]
    padded = model.vision.preprocess(picture).tensors["pixel_values"]
    changed(model.folder, image_aspect_ratio="square")
    plain = load_processor(resolve(str(model.folder))).image_processor(picture.image, return_tensors="pt")
    assert padded[0, :, 0].std(-1).max() == 0 != plain["pixel_values"][0, :, 0].std(-1).max()


CHANGES: dict[str, Any] = {
    "mm_projector_type": "mlp3x_gelu",
    "mm_vision_select_feature": "slice",
    "mm_use_im_start_end": True,
    "mm_resampler_type": "perceiver",
    "image_aspect_ratio": "keep",
}


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_what_is_not_known_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """Before weights are read: there are none."""
    settings = {"model_type": "llava", "mm_vision_tower": "no/tower", "mm_projector_type": "mlp2x_gelu"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    changed(tmp_path, **{name: CHANGES[name]})
    with pytest.raises(UnsupportedModel, match=f"{name} {CHANGES[name]!r}"):
        load_family("llava").check_supported(resolve(str(tmp_path)))


def test_other_towers_are_refused_by_name(tmp_path: Path) -> None:
    model = made(tmp_path)
    config = beside(model.folder, "tower") / "config.json"
    config.write_text(json.dumps({"model_type": "siglip", "vision_config": {}}))
    (model.folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match="mm_vision_tower"):
        load_family("llava").check_supported(resolve(str(model.folder)))


def test_tiles_have_the_sizes_of_the_settings(tmp_path: Path) -> None:
    """LLaVA-1.6 as far as it is not the adapter's: type, configuration and processor."""
    sizes = [[336, 672], [672, 336], [1008, 672]]
    model = made(tmp_path, said=TILES)
    changed(model.folder, image_grid_pinpoints=sizes)
    found = resolve(str(model.folder))
    assert found.model_type == "llava_next"
    turned = [[height, width] for width, height in sizes]
    assert load_config(found).image_grid_pinpoints == turned
    images = load_processor(found).image_processor
    assert images.image_grid_pinpoints == turned
    pixels = images(model.pictures()[0].image.resize((900, 600)), return_tensors="pt")["pixel_values"]
    assert pixels.shape[1] == 7


def test_another_way_to_merge_tiles_is_refused_by_name(tmp_path: Path) -> None:
    model = made(tmp_path, said=TILES)
    changed(model.folder, mm_patch_merge_type="flat")
    with pytest.raises(UnsupportedModel, match="mm_patch_merge_type 'flat'"):
        load_config(resolve(str(model.folder)))


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False])
def test_tiles_are_the_stock_model(inside: bool, tmp_path: Path) -> None:
    model = made(tmp_path, ANYRES, said=TILES, tower_inside=inside)
    for one in model.pictures():
        keep_all(model, [one], PROMPT)
    keep_all(model, model.pictures()[:2], PROMPT)
