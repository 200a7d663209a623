"""--draft: large JPEGs are decoded smaller if the model shrinks all images to one size; a note says so of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunesid_cli.inputs.image import load_image_bytes, media_from_image
from prunesid_cli.models import FAMILIES, SPLICED, load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.tokencache import open_cache
from tests import hostile
from tests.conftest import Run
from tests.models.harness import CPU, VARIANTS, make_image
from tests.models.tiny import write_checkpoint
from tests.models.tiny.base import tower_pixels

DYNAMIC = ("idefics3", "internvl", "llava_next", "llava_onevision", "qwen", "smolvlm")
"""Families that read more tokens of a larger image."""


def jpeg(size: tuple[int, int], **options: object) -> bytes:
    return hostile.encoded(make_image(1, size), "JPEG", quality=95, **options)


@pytest.mark.parametrize(
    ("min_decode_side", "scale"), [(24, 8), (30, 8), (31, 4), (60, 4), (61, 2), (120, 2), (121, 1), (999, 1)]
)
def test_a_jpeg_is_decoded_as_small_as_allowed(min_decode_side: int, scale: int) -> None:
    data = jpeg((400, 240))
    whole, small = load_image_bytes(data, "x"), load_image_bytes(data, "x", "", min_decode_side)
    assert (small.size, small.digest) == (whole.size, whole.digest) == ((400, 240), whole.digest)
    assert small.image.size == (400 // scale, 240 // scale)
    assert small.notes == ((f"decoded at 1/{scale} of its size",) if scale > 1 else ())
    difference = np.asarray(small.image, float) - np.asarray(whole.image.reduce(scale), float)
    assert np.abs(difference).mean() < 1


@pytest.mark.parametrize("format", ["JPEG", "MPO"])
@pytest.mark.parametrize("orientation", hostile.STORED)
def test_a_smaller_image_is_upright_and_has_the_size_of_the_file(format: str, orientation: int) -> None:
    data = hostile.turned(orientation, format)
    whole, small = load_image_bytes(data, "x"), load_image_bytes(data, "x", "", 16)
    assert small.size == whole.size == (96, 64)
    assert small.image.size == (24, 16)
    for name, seen in hostile.corners(small.image.resize((96, 64))).items():
        assert np.abs(np.subtract(seen, hostile.CORNERS[name])).max() <= 60, name


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "BMP"])
def test_other_formats_are_decoded_at_full_size(format: str) -> None:
    data = hostile.encoded(make_image(1, (400, 240)), format)
    assert load_image_bytes(data, "x", "", 24) == load_image_bytes(data, "x")


def test_colour_modes_and_damage_are_handled_as_at_full_size() -> None:
    grey = hostile.encoded(make_image(1, (400, 240)).convert("L"), "JPEG")
    cmyk = hostile.encoded(make_image(1, (400, 240)).convert("CMYK"), "JPEG")
    for data in (grey, cmyk):
        whole, small = load_image_bytes(data, "x"), load_image_bytes(data, "x", "", 24)
        assert small.notes == ("decoded at 1/8 of its size", *whole.notes)
        difference = np.asarray(small.image, float) - np.asarray(whole.image.reduce(8), float)
        assert np.abs(difference).mean() < 2
    with pytest.raises(Exception, match="cut short"):
        load_image_bytes(jpeg((400, 240))[:2000], "x", "", 24)


@pytest.mark.parametrize("variant", VARIANTS)
def test_families_with_one_input_size_read_nearly_the_same_of_a_smaller_image(variant: str, tmp_path: Path) -> None:
    checkpoint = resolve(str(write_checkpoint(variant, tmp_path)))
    vision = load_family(checkpoint.model_type).load_vision_half(checkpoint, CPU)
    side = getattr(vision, "fixed_short_side", None)
    if side is None:
        is_generic = FAMILIES.get(variant.split("-")[0]) == SPLICED
        assert variant.startswith(DYNAMIC) or is_generic or variant in ("llava-pixtral", "gemma3-crops")
        return
    assert not variant.startswith(DYNAMIC)
    large = make_image(1, (8 * side, 6 * side))
    whole, small = (vision.preprocess(media_from_image(image)) for image in (large, large.reduce(2)))
    assert whole.layout == small.layout
    assert (tower_pixels(whole) - tower_pixels(small)).abs().mean() < 0.02


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """One larger than twice the input size of the tiny LLaVA, and one smaller than that."""
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(jpeg((2800, 1500)))
    (folder / "b.jpg").write_bytes(jpeg((600, 500)))
    return folder


def test_the_cache_keeps_a_note_for_each_image(run: Run, llava: Path, photos: Path, tmp_path: Path) -> None:
    for name, *options in (("plain",), ("draft", "--draft")):
        done = run("compress", photos, "-m", llava, "--out", tmp_path / name, *options)
        assert done.code == 0, done.err
        assert "--draft changed nothing" not in done.err
    plain, draft = ([item for _, item in open_cache(tmp_path / name).items()] for name in ("plain", "draft"))
    assert [item.size for item in draft] == [item.size for item in plain] == [(2800, 1500), (600, 500)]
    assert [item.notes for item in plain] == [(), ()]
    assert [item.notes for item in draft] == [("decoded at 1/2 of its size",), ()]
    assert (draft[0].digest, draft[1].check) == (plain[0].digest, plain[1].check)
    assert draft[0].check != plain[0].check


def test_a_model_with_dynamic_resolution_gets_the_full_image(run: Run, photos: Path, tmp_path: Path) -> None:
    model = write_checkpoint("qwen2_vl", tmp_path / "m")
    done = run("compress", photos / "b.jpg", "-m", model, "--out", tmp_path / "c", "--draft")
    assert (done.code, "--draft changed nothing" in done.err) == (0, True)
    assert [item.notes for _, item in open_cache(tmp_path / "c").items()] == [()]
