"""The box of each region in a layout is the part of the image that the processor took its pixels from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunesid_cli.inputs.image import media_from_frames, media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from tests.models.tiny import write_checkpoint
from tests.models.tiny.base import tower_pixels

LoadVision = Callable[[str], Any]
SIZES = ((500, 200), (90, 400), (336, 336), (333, 331))


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> LoadVision:
    halves = dict[str, Any]()

    def call(variant: str) -> Any:
        if variant not in halves:
            checkpoint = resolve(str(write_checkpoint(variant, tmp_path_factory.mktemp(variant))))
            placement = choose_placement("cpu", "auto", "auto", load_config(checkpoint))
            halves[variant] = load_family(checkpoint.model_type).load_vision_half(checkpoint, placement)
        return halves[variant]

    return call


def ramp(size: tuple[int, int], axis: int) -> Image.Image:
    """Grey that rises from 1/4 to 3/4 of white, to the right (axis 0) or downwards (axis 1)."""
    line = np.linspace(64, 191, size[axis])
    grey = np.broadcast_to(line if axis == 0 else line[:, None], size[::-1])
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("variant", "is_clip"),
    [
        ("llava", False),
        ("llava-siglip", False),
        ("llava-original", False),
        ("llava_next_video", False),
        ("llava_next_video", True),
        ("smolvlm", True),
        ("video_llava", False),
        ("video_llava", True),
    ],
)
def test_a_square_shows_its_box(load: LoadVision, variant: str, is_clip: bool, size: tuple[int, int]) -> None:
    """The grey at 1/4 and 3/4 of a centered square is that of the places that its box gives."""
    if variant == "smolvlm":
        pytest.importorskip("num2words")

    def preprocess(image: Image.Image) -> tuple[torch.Tensor, Any]:
        media = media_from_frames((image, image), (0.0, 1.0)) if is_clip else media_from_image(image)
        pixels = load(variant).preprocess(media)
        return tower_pixels(pixels)[0].mean(0), pixels.layout.regions[0].box

    plain = [preprocess(Image.new("RGB", size, color))[0] for color in ("black", "white")]
    black, white = (square[len(square) // 2, len(square) // 2] for square in plain)
    compared = 0
    for axis in (0, 1):
        square, box = preprocess(ramp(size, axis))
        places = [box[axis] + (box[axis + 2] - box[axis]) * fraction for fraction in (0.25, 0.75)]
        assert sum(places) == pytest.approx(1)
        if places[0] > 0:  # otherwise the place is padding
            middle = len(square) // 2
            line = (square[middle] if axis == 0 else square[:, middle])[[middle // 2, middle + middle // 2]]
            measured = ((line - black) / (white - black) - 0.25) / 0.5
            assert measured.tolist() == pytest.approx(places, abs=0.02)
            compared += 1
    assert compared


@pytest.mark.parametrize("size", [*SIZES, (700, 500), (1000, 320), (640, 200)])
@pytest.mark.parametrize("variant", ["llava_next", "llava_next-granite", "llava_onevision"])
def test_a_tile_grid_shows_its_box(load: LoadVision, variant: str, size: tuple[int, int]) -> None:
    """A patch of a white image on black padding is as white as the part of it that is inside the image.

    The last pixels of SigLIP's tiles are in no patch.
    """
    vision = load(variant)
    pixels = vision.preprocess(media_from_image(Image.new("RGB", size, "white")))
    region, tiles = pixels.layout.regions[1], tower_pixels(pixels)
    base, parts = tiles[:1], tiles[1:]
    white = (parts - parts.min()) / (parts.max() - parts.min()) if (parts < 0).any() else torch.ones_like(parts)
    patch = vision.model.config.vision_config.patch_size
    brightness = torch.cat([torch.ones_like(base), white]).mean(1, keepdim=True)
    patches = torch.nn.functional.avg_pool2d(brightness, patch)
    packed, _ = vision.model.model.pack_image_features(
        [patches.flatten(1)[..., None]], pixels.tensors["image_sizes"], image_newline=torch.tensor([-1.0]),
        **({"vision_aspect_ratio": vision.aspect_ratio} if variant == "llava_onevision" else
           {"vision_feature_select_strategy": vision.model.config.vision_feature_select_strategy}),
    )  # fmt: skip
    grid = packed[0].flatten()[torch.tensor(region.slots)].view(region.rows, region.columns)
    left, top, right, bottom = region.box
    across, down = (inside(left, right, region.columns), inside(top, bottom, region.rows))
    assert np.abs(grid.numpy() - np.outer(down, across)).max() < 0.2, (region.box, grid[:, 0], grid[0])


def inside(start: float, end: float, count: int) -> np.ndarray:
    """The part of each patch that is inside the image."""
    edges = np.linspace(start, end, count + 1)
    return np.diff(edges.clip(0, 1)) / np.diff(edges)


def test_the_padding_of_a_square_is_outside_its_box(load: LoadVision) -> None:
    vision = load("llava-original")
    box = vision.preprocess(media_from_image(Image.new("RGB", (500, 200), "white"))).layout.regions[0].box
    assert box == pytest.approx((0.0, -0.75, 1.0, 1.75))
