"""Pixels leave the processors as whole numbers, and the tower reads the bits that the stock processor gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPImageProcessorPil

from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.shared.pixel_scale import first_tensor, scale_pixels, split_scale
from tests.models.harness import CPU, VARIANTS, make_clip, make_image
from tests.models.tiny import tiny_model, write_checkpoint

SIZE = {"shortest_edge": 20}
CROP = {"height": 20, "width": 20}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_moves_whole_numbers(variant: str, tmp_path: Path) -> None:
    checkpoint = resolve(str(write_checkpoint(variant, tmp_path)))
    vision = load_family(checkpoint.model_type).load_vision_half(checkpoint, CPU)
    if variant.startswith("smolvlm"):
        pytest.importorskip("num2words")
    media = [media_from_image(make_image(1, (90, 60)))] + ([make_clip(1)] if tiny_model(variant).clip_inputs else [])
    for item in media:
        pixels = vision.preprocess(item)
        assert pixels.scale is not None
        assert next(iter(pixels.tensors.values())).dtype == torch.uint8


@pytest.mark.parametrize("settings", [
    {},
    {"do_normalize": False},
    {"do_rescale": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
])  # fmt: skip
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_table_gives_the_bits_of_the_processor(settings: dict, dtype: torch.dtype) -> None:
    processor = CLIPImageProcessorPil(size=SIZE, crop_size=CROP, **settings)
    scale, options = split_scale(processor)
    assert scale is not None
    image = make_image(3, (50, 31))
    numbers = first_tensor(processor(images=[image], return_tensors="pt", **options))
    expected = first_tensor(processor(images=[image], return_tensors="pt"))
    assert numbers.dtype == torch.uint8
    scaled = torch.empty(expected.shape, dtype=dtype)
    scale_pixels(numbers, scale, scaled)
    assert torch.equal(scaled, expected.to(dtype))


class PadsAfterwards(CLIPImageProcessorPil):
    """Adds a border of zeros after normalization, which no whole number stands for."""

    def normalize(self, image, mean, std, **kwargs):  # type: ignore[no-untyped-def]
        normal = super().normalize(image, mean, std, **kwargs)
        normal[:, 0] = 0
        return normal


def test_a_processor_that_does_more_with_the_numbers_does_all_of_it() -> None:
    processor = PadsAfterwards(size=SIZE, crop_size=CROP)
    assert split_scale(processor, do_resize=True) == (None, {"do_resize": True})
