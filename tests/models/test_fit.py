"""What is lost of images that are not square: the share that is reported, and padding instead of cropping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunesid_cli.inputs.image import media_from_frames, media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from tests.models.harness import CPU, make_image
from tests.models.tiny import write_checkpoint
from tests.models.tiny.base import tower_pixels

SIZES = ((1200, 300), (90, 400), (333, 331), (336, 336), (501, 200))
CROPPING = [
    ("llava", False),
    ("llava_next_video", True),
    ("mini_gemini", False),
    ("video_llava", False),
    ("video_llava", True),
]
"""Variants that crop, and whether they crop frames of clips or images."""


def load_vision(variant: str, folder: Path) -> Any:
    checkpoint = resolve(str(write_checkpoint(variant, folder / "model")))
    return load_family(checkpoint.model_type).load_vision_half(checkpoint, CPU)


def preprocess(vision: Any, image: Image.Image, is_clip: bool) -> tuple[torch.Tensor, Any]:
    """The pixels of an image, or of a clip of two equal frames, and the layout."""
    media = media_from_frames((image, image), (0.0, 1.0)) if is_clip else media_from_image(image)
    pixels = vision.preprocess(media)
    return tower_pixels(pixels), pixels.layout


def measure_visible_share(vision: Any, size: tuple[int, int], is_clip: bool) -> float:
    """The share of the area that can be found in the pixels: the range of a ramp that they have, for both axes."""
    black, white = (preprocess(vision, Image.new("RGB", size, color), is_clip)[0] for color in ("black", "white"))
    share = 1.0
    for axis in (0, 1):
        line = np.linspace(0, 255, size[axis])
        grey = np.broadcast_to(line if axis == 0 else line[:, None], size[::-1]).astype(np.uint8)
        pixels = preprocess(vision, Image.fromarray(grey).convert("RGB"), is_clip)[0]
        shown = ((pixels - black) / (white - black))[(white - black) > 1]  # elsewhere, there is padding
        share *= float(shown.max() - shown.min())
    return share


@pytest.mark.parametrize(("variant", "is_clip"), [*CROPPING, ("llava-siglip", False), ("llava-original", False)])
def test_the_visible_share_is_that_of_the_pixels(variant: str, is_clip: bool, tmp_path: Path) -> None:
    vision = load_vision(variant, tmp_path)
    crops = (variant, is_clip) in CROPPING
    for _ in range(2):
        for size in SIZES:
            reported = preprocess(vision, Image.new("RGB", size), is_clip)[1].visible_share
            assert reported == pytest.approx(min(size) / max(size) if crops else 1, abs=1e-6), size
            assert reported == pytest.approx(measure_visible_share(vision, size, is_clip), abs=0.02), size
        if not crops:
            break
        vision.pad_to_square()
        crops = False


@pytest.mark.parametrize(("variant", "is_clip"), CROPPING)
def test_padding_is_that_of_the_authors_of_llava(variant: str, is_clip: bool, tmp_path: Path) -> None:
    """The pixels are those of the image in the middle of a square of the mean color; squares stay as they are."""
    vision = load_vision(variant, tmp_path)
    names = ("frames",) if is_clip else ("preprocessor", "images")
    (preprocessor,) = (getattr(vision, name) for name in names if hasattr(vision, name))
    color = tuple(int(255 * mean) for mean in preprocessor.image_processor.image_mean)
    images = [make_image(number, size) for number, size in enumerate(SIZES)]
    expected = [preprocess(vision, expand_to_square(image, color), is_clip)[0] for image in images]
    vision.pad_to_square()
    for image, pixels in zip(images, expected, strict=True):
        torch.testing.assert_close(preprocess(vision, image, is_clip)[0], pixels, atol=1e-5, rtol=0)


def expand_to_square(image: Image.Image, color: tuple[int, ...]) -> Image.Image:
    width, height = image.size
    square = Image.new("RGB", (max(image.size),) * 2, color)
    square.paste(image, (0, (width - height) // 2) if width > height else ((height - width) // 2, 0))
    return square


@pytest.mark.parametrize("variant", ["llava-siglip", "llava-pixtral", "llava_next", "qwen2_vl", "llava-original"])
def test_a_model_that_does_not_crop_reads_the_same(variant: str, tmp_path: Path) -> None:
    vision = load_vision(variant, tmp_path)
    image = make_image(1, (500, 200))
    pixels, layout = preprocess(vision, image, False)
    if hasattr(vision, "pad_to_square"):
        vision.pad_to_square()
    same_pixels, same_layout = preprocess(vision, image, False)
    assert torch.equal(pixels, same_pixels)
    assert (layout, layout.visible_share) == (same_layout, 1)
