"""LLaVA-OneVision: packing, saliency and tiling against the stock model, and which checkpoints are refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoVideoProcessor, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration
from transformers.utils import is_torchvision_available

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models.llava_onevision import (
    LlavaOnevision,
    LlavaOnevisionLanguage,
    LlavaOnevisionVision,
)
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.pipeline.ask import ask
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection.budget import Budget
from prunesid_cli.types import Generation
from tests.models.harness import CPU, make_clip, make_image
from tests.models.tiny import write_checkpoint
from tests.models.tiny.base import tower_pixels
from tests.models.tiny.llava_onevision import llava_onevision

EXACT = {"atol": 1e-5, "rtol": 0.0}
SHRUNK = (1100, 1900)


@dataclass(frozen=True)
class Model:
    folder: Path

    @cached_property
    def vision(self) -> LlavaOnevisionVision:
        return LlavaOnevisionVision(resolve(str(self.folder)), CPU)

    @cached_property
    def stock(self) -> Any:
        return LlavaOnevisionForConditionalGeneration.from_pretrained(self.folder, attn_implementation="eager").eval()

    def received(self, pixels: Tensor) -> Tensor:
        """What each token of each tile receives in the layer that is read: [P, N]."""
        with torch.no_grad():
            attentions = self.stock.model.vision_tower(pixels, output_attentions=True).attentions
        received: Tensor = attentions[self.stock.config.vision_feature_layer].mean((1, 2))
        return received


@pytest.fixture(scope="module", params=["llava_onevision", "llava_onevision-earlier"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)))


def rows_by_slot(encoded: Any, attribute: str) -> Tensor:
    """An attribute of all segments [total, ...], by slot; NaN where there is no visual token."""
    first = getattr(encoded.segments[0], attribute)
    rows = torch.full((encoded.layout.total, *first.shape[1:]), torch.nan)
    for segment in encoded.segments:
        rows[list(segment.slots)] = getattr(segment, attribute)
    return rows


def test_saliency_is_the_eager_attention_that_is_received(model: Model) -> None:
    """That of the whole image is unchanged; that of the tiles is packed like the tokens."""
    item = model.vision.preprocess(media_from_image(make_image(1, SHRUNK)))
    (encoded,) = model.vision.encode([item])
    expected = model.received(tower_pixels(item))
    packed, _ = model.stock.model.pack_image_features(
        [expected[..., None]], item.tensors["image_sizes"], torch.full((1,), torch.nan)
    )
    saliency = rows_by_slot(encoded, "saliency")
    torch.testing.assert_close(saliency, packed[0][:, 0], equal_nan=True, **EXACT)
    torch.testing.assert_close(saliency[: model.vision.side**2], expected[0], **EXACT)


def test_saliency_of_a_clip_is_pooled_as_its_frames_are(model: Model) -> None:
    item = model.vision.preprocess(make_clip(1, 3))
    (encoded,) = model.vision.encode([item])
    pooled = model.stock.model.apply_pooling(model.received(tower_pixels(item))[..., None])
    for segment, expected in zip(encoded.segments, pooled[..., 0], strict=True):
        torch.testing.assert_close(segment.saliency, expected, **EXACT)


@pytest.mark.parametrize("size", [(384, 384), (500, 700), (1919, 401), (333, 1777), (2304, 2304), (3, 900)])
def test_slots_are_those_of_the_stock_processor(model: Model, size: tuple[int, int]) -> None:
    """There are as many as in the prompt, with a newline at the end of each row and nowhere else."""
    image = make_image(3, size)
    layout = model.vision.preprocess(media_from_image(image)).layout
    written = model.vision.processor(text=["<image>"], images=[image], return_tensors="pt")["input_ids"]
    assert layout.total == written.numel()
    visual = {slot for region in layout.regions for slot in region.slots}
    grid = layout.regions[1]
    ends = {grid.first + row * grid.stride + grid.columns for row in range(grid.rows)}
    assert visual | ends == set(range(layout.total))
    assert not visual & ends


@pytest.mark.parametrize("size", [(8, 1000), (1000, 8)])
def test_only_the_whole_of_a_very_narrow_image_is_left(tmp_path: Path, size: tuple[int, int]) -> None:
    """With an even number of patches a side, all columns or rows of the raster are padding."""
    llava_onevision(tmp_path, patch=48)
    vision, media = LlavaOnevisionVision(resolve(str(tmp_path)), CPU), media_from_image(make_image(1, size))
    (encoded,) = vision.encode([vision.preprocess(media)])
    written = vision.processor(text=["<image>"], images=[media.image], return_tensors="pt")["input_ids"]
    assert (len(encoded.segments), encoded.layout.total) == (1, written.numel())


@pytest.mark.parametrize("size", [(300, 300), SHRUNK])
def test_an_image_with_others_in_its_prompt_is_not_tiled(model: Model, size: tuple[int, int]) -> None:
    side = model.vision.side
    item = model.vision.preprocess(media_from_image(make_image(1, size)), num_other_images=1)
    assert (len(tower_pixels(item)), item.layout.total, len(item.layout.regions)) == (1, side**2 + 1, 1)


def test_rasters_are_cut_into_windows_of_at_most_a_tile(model: Model) -> None:
    (encoded,) = model.vision.encode([model.vision.preprocess(media_from_image(make_image(1, SHRUNK)))])
    sizes = [len(segment.features) for segment in encoded.segments]
    assert max(sizes) <= model.vision.side**2
    assert len(sizes) > 9


def test_frames_are_squeezed_to_a_square_as_the_settings_for_clips_say(model: Model) -> None:
    media = make_clip(1, 2, (640, 200))
    pixels = tower_pixels(model.vision.preprocess(media))
    frame = media.frames[1].resize((384, 384), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.asarray(frame) / 127.5 - 1).permute(2, 0, 1).float()
    torch.testing.assert_close(pixels[1], expected, **EXACT)


@pytest.mark.skipif(not is_torchvision_available(), reason="the stock processor of clips needs torchvision")
def test_frames_are_those_of_the_stock_processor(model: Model) -> None:
    media = make_clip(1, 3, (640, 200))
    stock = AutoVideoProcessor.from_pretrained(model.folder)
    frames = torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in media.frames])
    expected = stock(videos=[frames], return_tensors="pt")["pixel_values_videos"][0]
    frames = tower_pixels(model.vision.preprocess(media))
    torch.testing.assert_close(frames, expected, atol=0.03, rtol=0.0)


def test_a_prompt_about_an_image_and_a_clip_is_the_stock_model(model: Model) -> None:
    """The image is the only one, so it is tiled."""
    media, prompt = (
        [media_from_image(make_image(1, (700, 200))), make_clip(1, 3)],
        "first <image> and then <video> what is shown?",
    )
    pruner = Pruner(model.vision, Budget.parse("all"), "prunesid", ())
    language = LlavaOnevisionLanguage(resolve(str(model.folder)), CPU)
    _, items = ask(pruner, language, media, prompt, Generation(max_new_tokens=2))
    image, frames = (
        dict(item.tensors) | {next(iter(item.tensors)): tower_pixels(item)}
        for item in map(model.vision.preprocess, media)
    )
    layouts = [item.layout for item in items]
    ids = language.tokenize(prompt, layouts).tolist()
    runs = iter([layout.total for layout in layouts])
    expanded = [token for i in ids for token in [i] * (next(runs) if i in language.placeholder_ids else 1)]
    with torch.no_grad():
        expected = model.stock(
            input_ids=torch.tensor([expanded]),
            pixel_values=image["pixel_values"][None],
            image_sizes=image["image_sizes"],
            pixel_values_videos=frames["pixel_values_videos"][None],
        ).logits[:, -1]
    logits = language.logits([language.embed(prompt, items)])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0.0)


def test_a_pooling_head_is_left_out(model: Model, tmp_path: Path) -> None:
    config = LlavaOnevisionConfig.from_pretrained(model.folder)
    config.vision_config.vision_use_head = True
    stock = LlavaOnevisionForConditionalGeneration(config)
    stock.save_pretrained(tmp_path)
    for path in model.folder.iterdir():
        if not (tmp_path / path.name).exists():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for half in (LlavaOnevisionVision, LlavaOnevisionLanguage):
        names = [name for name, _ in half(resolve(str(tmp_path)), CPU).model.named_parameters()]
        assert not [name for name in names if ".head." in name]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vision_config": {"model_type": "clip_vision_model"}}, "tower of type 'clip_vision_model'"),
        ({"vision_feature_layer": [-2, -1]}, r"layers \[-2, -1\] joined"),
        ({"vision_feature_select_strategy": "default"}, "'default'"),
    ],
)
def test_unknown_variants_are_refused_before_weights_are_read(
    model: Model, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    config = json.loads((model.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModel, match=named):
        LlavaOnevision().check_supported(resolve(str(tmp_path)))
