"""InternVL: order of the shuffle, saliency, tiles and frames, and which checkpoints are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.spliced.halves import grid_key
from tests.models.harness import CPU, Model, make_clip, make_image
from tests.models.tiny import tiny_model, write_checkpoint
from tests.models.tiny.base import tower_pixels


@pytest.fixture(scope="module", params=["internvl", "internvl-large", "internvl-inner"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint("internvl", tmp_path_factory.mktemp("plain")), tiny_model("internvl"))


def test_a_token_is_a_square_of_patches(plain: Model) -> None:
    """As the gradients of the stock model's shuffle and projector say."""
    pixels = plain.vision.preprocess(media_from_image(make_image(3, (448, 448))))
    plain.vision.encode([pixels])
    for token, square in enumerate(plain.vision.saliency.maps[grid_key(pixels)].patches.tolist()):
        row, column = divmod(token, 16)
        # The first patch is CLS.
        assert sorted(square) == [1 + 32 * (2 * row + i) + 2 * column + j for i in (0, 1) for j in (0, 1)]


def test_saliency_is_the_attention_of_cls_in_the_layer_that_is_read(model: Model) -> None:
    pixels = model.vision.preprocess(media_from_image(make_image(3, (900, 880))))
    (item,) = model.vision.encode([pixels])
    config = model.stock.config
    layer = config.vision_feature_layer
    with torch.no_grad():
        output = model.stock.model.vision_tower(tower_pixels(pixels), output_attentions=True)
        cls_row = output.attentions[layer].sum(1)[:, 0, 1:].view(-1, 16, 2, 16, 2)
        stock = model.stock.get_image_features(tower_pixels(pixels), return_dict=True).pooler_output
    assert_close(
        torch.stack([segment.saliency for segment in item.segments]), cls_row.sum((2, 4)).flatten(1), atol=1e-5, rtol=0
    )
    assert_close(torch.stack([segment.features for segment in item.segments]), stock, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("size", "grid"), [((448, 448), (1, 1)), ((1200, 900), (3, 4)), ((200, 1200), (6, 1)), ((1600, 100), (1, 12))]
)
def test_tiles_are_where_the_processor_cut(plain: Model, size: tuple[int, int], grid: tuple[int, int]) -> None:
    layout = plain.vision.preprocess(media_from_image(make_image(0, size))).layout
    rows, columns = grid
    boxes = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)]
    boxes += [(0, 0, 1, 1)] if len(boxes) > 1 else []
    assert [region.box for region in layout.regions] == boxes
    assert [region.first for region in layout.regions] == [256 * i for i in range(len(boxes))]
    assert layout.runs == (256 * len(boxes),)
    assert layout.text == "<img><IMG_CONTEXT></img>"


def test_a_tile_shows_its_box(plain: Model) -> None:
    """If an image is white in a single tile, that tile is bright and no other, apart from the whole image."""
    image = make_image(0, (1792, 448)).point(lambda value: 0)
    image.paste((255, 255, 255), (896, 0, 1344, 448))
    pixels = plain.vision.preprocess(media_from_image(image))
    bright = [i for i, tile in enumerate(tower_pixels(pixels)) if tile.mean() > 1.5]
    assert [pixels.layout.regions[i].box for i in bright] == [(0.5, 0.0, 0.75, 1.0)]


def test_a_clip_is_written_frame_by_frame(plain: Model) -> None:
    pixels = plain.vision.preprocess(make_clip(1, 3))
    assert pixels.layout.text == "\n".join(f"Frame{i}: <img><IMG_CONTEXT></img>" for i in (1, 2, 3))
    assert pixels.layout.runs == (256,) * 3
    assert [region.time for region in pixels.layout.regions] == [0.0, 0.5, 1.0]


def test_a_clip_is_processed_as_by_the_video_processor(plain: Model) -> None:
    pytest.importorskip("torchvision")
    from transformers import AutoProcessor

    media = make_clip(1, 3)
    stock = AutoProcessor.from_pretrained(plain.folder)
    processed = stock(text=["<video>"], videos=[list(media.frames)], return_tensors="pt", do_sample_frames=False)
    pixels = plain.vision.preprocess(media)
    ids = processed["input_ids"][0]
    places = (ids == stock.image_token_id).nonzero().flatten()
    assert len(places) == pixels.layout.total
    text = stock.tokenizer.decode(ids).replace("<IMG_CONTEXT>" * 256, "<IMG_CONTEXT>")
    assert text == pixels.layout.text
    assert_close(tower_pixels(pixels), processed["pixel_values"], atol=0.05, rtol=0)


def test_weight_names_from_before_transformers_5_load(plain: Model, tmp_path: Path) -> None:
    """`language_model.model.layers...` and `vision_tower...`, with no `model.` before them."""
    weights = load_file(plain.folder / "model.safetensors")
    old = {name.replace("model.language_model.", "language_model.model."): tensor for name, tensor in weights.items()}
    old = {name.removeprefix("model."): tensor for name, tensor in old.items()}
    for path in plain.folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file(old, tmp_path / "model.safetensors", {"format": "pt"})
    checkpoint, family = resolve(str(tmp_path)), load_family("internvl")
    for half in ("vision", "language"):
        expected, loaded = getattr(plain, half).model, getattr(family, f"load_{half}_half")(checkpoint, CPU).model
        for (name, a), (_, b) in zip(expected.named_parameters(), loaded.named_parameters(), strict=True):
            assert torch.equal(a, b) or "embed_tokens" in name or "lm_head" in name, name
