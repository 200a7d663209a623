"""Where a layout says that a raster lies in the picture is where the processor took its pixels from."""

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
from tests.models.tiny import write

Load = Callable[[str], Any]
SIZES = ((500, 200), (90, 400), (336, 336), (333, 331))


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    made = dict[str, Any]()

    def call(variant: str) -> Any:
        if variant not in made:
            checkpoint = resolve(str(write(variant, tmp_path_factory.mktemp(variant))))
            placement = choose_placement("cpu", "auto", "auto", load_config(checkpoint))
            made[variant] = load_family(checkpoint.model_type).load_vision_half(checkpoint, placement)
        return made[variant]

    return call


def ramp(size: tuple[int, int], axis: int) -> Image.Image:
    """From 1/4 to 3/4 of white, rightwards or downwards."""
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
def test_a_square_shows_its_box(load: Load, variant: str, is_clip: bool, size: tuple[int, int]) -> None:
    """What is seen 1/4 and 3/4 along it is where the box says, for one that lies in the middle of the picture."""
    if variant == "smolvlm":
        pytest.importorskip("num2words")

    def square(image: Image.Image) -> tuple[torch.Tensor, Any]:
        media = media_from_frames((image, image), (0.0, 1.0)) if is_clip else media_from_image(image)
        made = load(variant).preprocess(media)
        return next(iter(made.tensors.values())).flatten(0, -4)[0].mean(0), made.layout.regions[0].box

    plain = [square(Image.new("RGB", size, ink))[0] for ink in ("black", "white")]
    black, white = (one[len(one) // 2, len(one) // 2] for one in plain)
    compared = 0
    for axis in (0, 1):
        seen, box = square(ramp(size, axis))
        places = [box[axis] + (box[axis + 2] - box[axis]) * share for share in (0.25, 0.75)]
        assert sum(places) == pytest.approx(1)
        if places[0] > 0:  # else it is padding
            middle = len(seen) // 2
            line = (seen[middle] if axis == 0 else seen[:, middle])[[middle // 2, middle + middle // 2]]
            found = ((line - black) / (white - black) - 0.25) / 0.5
            assert found.tolist() == pytest.approx(places, abs=0.02)
            compared += 1
    assert compared


@pytest.mark.parametrize("size", [*SIZES, (700, 500), (1000, 320), (640, 200)])
@pytest.mark.parametrize("variant", ["llava_next", "llava_next-granite", "llava_onevision"])
def test_a_raster_of_tiles_shows_its_box(load: Load, variant: str, size: tuple[int, int]) -> None:
    """Of a white picture on black padding, a patch is as white as it is inside the picture. The last pixels of SigLIP's
    tiles are in no patch."""
    vision = load(variant)
    made = vision.preprocess(media_from_image(Image.new("RGB", size, "white")))
    region, tiles = made.layout.regions[1], next(iter(made.tensors.values()))[1:]
    white = (tiles - tiles.min()) / (tiles.max() - tiles.min()) if (tiles < 0).any() else torch.ones_like(tiles)
    patch = vision.model.config.vision_config.patch_size
    whole = next(iter(made.tensors.values()))
    seen = torch.nn.functional.avg_pool2d(torch.cat([torch.ones_like(whole[:1]), white]).mean(1, keepdim=True), patch)
    packed, _ = vision.model.model.pack_image_features(
        [seen.flatten(1)[..., None]], made.tensors["image_sizes"], image_newline=torch.tensor([-1.0]),
        **({"vision_aspect_ratio": vision.aspect_ratio} if variant == "llava_onevision" else
           {"vision_feature_select_strategy": vision.model.config.vision_feature_select_strategy}),
    )  # fmt: skip
    found = packed[0].flatten()[torch.tensor(region.slots)].view(region.rows, region.columns)
    left, top, right, bottom = region.box
    across, down = (inside(*one) for one in ((left, right, region.columns), (top, bottom, region.rows)))
    assert np.abs(found.numpy() - np.outer(down, across)).max() < 0.2, (region.box, found[:, 0], found[0])


def inside(start: float, end: float, count: int) -> np.ndarray:
    """How much of each patch is within the picture."""
    edges = np.linspace(start, end, count + 1)
    return np.diff(edges.clip(0, 1)) / np.diff(edges)


def test_the_padding_of_a_square_is_outside_its_box(load: Load) -> None:
    vision = load("llava-original")
    box = vision.preprocess(media_from_image(Image.new("RGB", (500, 200), "white"))).layout.regions[0].box
    assert box == pytest.approx((0.0, -0.75, 1.0, 1.75))
