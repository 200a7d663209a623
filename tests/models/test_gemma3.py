"""Gemma 3: saliency, newlines around an image, attention inside it, crops, the real size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from tests.models.harness import CLOSE, CPU, GENERATION, PROMPT, Model, check_keeping_all, make_image
from tests.models.tiny import tiny_model, write_checkpoint
from tests.models.tiny.base import TinyModel, tower_pixels
from tests.models.tiny.gemma3 import gemma3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint("gemma3", tmp_path_factory.mktemp("gemma3")), tiny_model("gemma3"))


def test_saliency_is_the_eager_attention_that_a_block_receives(model: Model) -> None:
    pixels = [model.vision.preprocess(media) for media in model.images()]
    batch = torch.cat([tower_pixels(item) for item in pixels])
    with torch.no_grad():
        tower = model.stock.model.vision_tower
        attention = tower(pixel_values=batch, output_attentions=True).attentions[-1]
    received = attention.mean((1, 2)).view(-1, 8, 4, 8, 4).sum((2, 4)).flatten(1)
    saliency = torch.stack([item.segments[0].saliency for item in model.vision.encode(pixels)])
    torch.testing.assert_close(saliency, received, atol=1e-5, rtol=1e-5)


def test_newlines_before_an_image_are_one_token(model: Model) -> None:
    """The turn begins with `user\\n`, and the image with two more newlines."""
    (item,) = model.pruner("7").prune(model.pruner().encode([model.vision.preprocess(model.images()[0])]))
    ids = model.language.tokenize(PROMPT, [item.layout])
    words = model.processor.tokenizer.convert_ids_to_tokens(ids.tolist())
    assert words[words.index("<start_of_image>") - 1] == "\n\n\n"
    stock = model.stock_inputs(model.images()[:1], PROMPT)["input_ids"][0].unique_consecutive()
    assert stock.tolist() == ids.unique_consecutive().tolist()


def test_kept_tokens_of_an_image_attend_to_each_other(model: Model) -> None:
    """Without that, the logits differ."""
    (item,) = model.pruner("23").prune(model.pruner().encode([model.vision.preprocess(model.images()[0])]))
    embedded = model.language.embed(PROMPT, [item])
    inputs = model.language.model_inputs([embedded])
    with torch.no_grad():
        bidirectional, causal = (
            model.language.model(**inputs | {"token_type_ids": types}).logits[0, -1]
            for types in (inputs["token_type_ids"], torch.zeros_like(inputs["token_type_ids"]))
        )
    torch.testing.assert_close(bidirectional, model.language.logits([embedded])[0])
    assert (bidirectional - causal).abs().max() > 1e-2


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint("gemma3-crops", tmp_path_factory.mktemp("crops")), tiny_model("gemma3-crops"))


@pytest.mark.parametrize(
    ("size", "num_crops", "second"),
    [((1100, 300), 4, (0.0, 0.0, 0.25, 1.0)), ((300, 800), 3, (0.0, 0.0, 1.0, 267 / 800)), ((9, 9), 0, None)],
)
def test_crops_lie_along_the_longer_side(
    crops: Model, size: tuple[int, int], num_crops: int, second: tuple[float, ...] | None
) -> None:
    layout = crops.vision.preprocess(media_from_image(make_image(0, size))).layout
    whole, *parts = [region.box for region in layout.regions]
    assert (whole, len(parts)) == ((0.0, 0.0, 1.0, 1.0), num_crops)
    assert not parts or (parts[0], parts[-1][2:]) == (second, (1.0, 1.0))


def test_crops_are_segments_with_text_between(crops: Model) -> None:
    (item,) = crops.vision.encode([crops.vision.preprocess(crops.images()[0])])
    assert (len(item.segments), item.layout.runs) == (5, (64,) * 5)
    assert "here are some crops" in item.layout.text


def test_flash_attention_is_refused(model: Model) -> None:
    checkpoint, placement = resolve(str(model.folder)), replace(CPU, attention="flash_attention_2")
    for half in ("vision", "language"):
        with pytest.raises(UsageError, match="both directions"):
            getattr(load_family("gemma3"), f"load_{half}_half")(checkpoint, placement)


@pytest.mark.slow
def test_the_real_size_is_the_stock_model(tmp_path: Path) -> None:
    """896 pixels, 4,096 patches, 256 tokens; the attention weights of a layer take several chunks."""
    gemma3(tmp_path, side=896)
    model = Model(tmp_path, TinyModel(partial(gemma3, side=896)))
    image = media_from_image(make_image(0, (700, 500)))
    check_keeping_all(model, [image], PROMPT)
    pixels = model.vision.preprocess(image)
    (item,) = model.vision.encode([pixels])
    with torch.no_grad():
        tower = model.stock.model.vision_tower
        attention = tower(pixel_values=tower_pixels(pixels), output_attentions=True).attentions[-1]
    received = attention.mean((1, 2)).view(16, 4, 16, 4).sum((1, 3)).flatten()
    torch.testing.assert_close(item.segments[0].saliency, received, **CLOSE)
    (kept,) = model.pruner("64").prune([item])
    assert model.language.generate([model.language.embed(PROMPT, [kept])], GENERATION)[0].new_tokens > 0
