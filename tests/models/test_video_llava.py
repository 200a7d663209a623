"""Video-LLaVA: images and clips have their own towers, CLS is read as by the stock model, refused checkpoints."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoVideoProcessor, VideoLlavaForConditionalGeneration
from transformers.utils import is_torchvision_available

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import media_from_frames, media_from_image
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.video_llava import CLIP_PIXELS, IMAGE_PIXELS, VideoLlava, VideoLlavaVision
from prunesid_cli.types import CLS_NOT_READ
from tests.models.harness import CPU, make_clip, make_image
from tests.models.tiny import write_checkpoint
from tests.models.tiny.base import tower_pixels

EXACT = {"atol": 1e-5, "rtol": 0.0}
FRAME = 1 + 16 * 16


@dataclass(frozen=True)
class Model:
    folder: Path

    @cached_property
    def vision(self) -> VideoLlavaVision:
        return VideoLlavaVision(resolve(str(self.folder)), CPU)

    @cached_property
    def stock(self) -> Any:
        return VideoLlavaForConditionalGeneration.from_pretrained(self.folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=["video_llava", "video_llava-full"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)))


@pytest.mark.parametrize("pixels_name", [IMAGE_PIXELS, CLIP_PIXELS])
def test_features_and_saliency_are_those_of_the_right_tower(model: Model, pixels_name: str) -> None:
    item = model.vision.preprocess(
        make_clip(1, 3) if pixels_name == CLIP_PIXELS else media_from_image(make_image(1, (300, 200)))
    )
    tower = model.stock.model.video_tower if pixels_name == CLIP_PIXELS else model.stock.model.image_tower
    with torch.no_grad():
        output = tower(tower_pixels(item), output_attentions=True, output_hidden_states=True)
    (encoded,) = model.vision.encode([item])
    assert len(encoded.segments) == len(tower_pixels(item))
    for number, segment in enumerate(encoded.segments):
        states = output.hidden_states[-2][number]
        torch.testing.assert_close(segment.features, states[1:], **EXACT)
        torch.testing.assert_close(segment.cls, states[0], **EXACT)
        torch.testing.assert_close(segment.saliency, output.attentions[-2][number].sum(0)[0, 1:], **EXACT)


def test_cls_is_read_of_clips_and_if_the_strategy_is_full_of_images(model: Model) -> None:
    image, frames = model.vision.encode(
        [model.vision.preprocess(media) for media in (media_from_image(make_image(1, (300, 200))), make_clip(1, 8))]
    )
    is_full = model.stock.config.vision_feature_select_strategy == "full"
    assert image.segments[0].cls_slot == (0 if is_full else CLS_NOT_READ)
    assert image.layout.total == FRAME - 1 + is_full
    assert frames.layout.total == model.stock.config.video_seq_length == 8 * FRAME
    assert [segment.cls_slot for segment in frames.segments] == [i * FRAME for i in range(8)]


def test_images_and_clips_in_any_order_are_encoded_as_alone(model: Model) -> None:
    media = (
        make_clip(1, 2),
        media_from_image(make_image(1, (300, 200))),
        make_clip(2, 3),
        media_from_image(make_image(2, (90, 300))),
    )
    pixels = [model.vision.preprocess(media) for media in media]
    for together, item in zip(model.vision.encode(pixels), pixels, strict=True):
        (alone,) = model.vision.encode([item])
        assert together.layout == alone.layout == item.layout
        for a, b in zip(together.segments, alone.segments, strict=True):
            torch.testing.assert_close(a.features, b.features, **EXACT)


def test_frames_follow_the_settings_for_clips(model: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(model.folder, tmp_path / "other")
    mean, std, path = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6], folder / "video_preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": mean, "image_std": std}))
    media = make_clip(1, 2, (224, 224))
    frames = tower_pixels(VideoLlavaVision(resolve(str(folder)), CPU).preprocess(media))
    expected = (np.asarray(media.frames[1]) / 255 - mean) / std
    torch.testing.assert_close(frames[1], torch.from_numpy(expected).permute(2, 0, 1).float(), **EXACT)


@pytest.mark.skipif(not is_torchvision_available(), reason="the stock processor of clips needs torchvision")
def test_frames_are_those_of_the_stock_processor(model: Model) -> None:
    media = make_clip(1, 3, (640, 300))
    stock = AutoVideoProcessor.from_pretrained(model.folder)
    frames = torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in media.frames])
    expected = stock(videos=[frames], return_tensors="pt")["pixel_values_videos"][0]
    torch.testing.assert_close(tower_pixels(model.vision.preprocess(media)), expected, atol=0.03, rtol=0.0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "towers of type 'siglip_vision_model'"),
        ({"vision_feature_layer": [-2, -5]}, r"layers \[-2, -5\] joined"),
    ],
)
def test_unknown_variants_are_refused_before_weights_are_read(
    model: Model, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    config = json.loads((model.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UnsupportedModel, match=named):
        VideoLlava().check_supported(resolve(str(tmp_path)))


@pytest.mark.parametrize("size", [(60, 1), (30, 3), (3, 3), (1, 60), (2, 1), (4, 2)])
@pytest.mark.parametrize("is_clip", [False, True])
def test_the_channels_of_flat_images_are_the_last_axis(model: Model, size: tuple[int, int], is_clip: bool) -> None:
    """So the pixels are those of the same image, drawn larger."""
    flat = make_image(4, size)
    large = flat.resize((100 * size[0], 100 * size[1]), Image.Resampling.NEAREST)

    def pixels(image: Image.Image) -> torch.Tensor:
        media = media_from_frames((image,), (0.0,)) if is_clip else media_from_image(image)
        return tower_pixels(model.vision.preprocess(media)).flatten()

    assert torch.cosine_similarity(pixels(flat), pixels(large), 0) > 0.9
