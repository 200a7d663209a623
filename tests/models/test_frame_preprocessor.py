"""Reading frames by Pillow, and scaling them on the device, gives the pixels of the image processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from prunesid_cli.models.shared.frame_preprocessor import FramePreprocessor, find_frame_reader
from prunesid_cli.models.shared.pixel_scale import first_tensor, scale_pixels
from tests.models.harness import make_image

SIZES = ((50, 31), (40, 40), (31, 97))
SETTINGS = {"size": {"shortest_edge": 20}, "crop_size": {"height": 20, "width": 20}}
SQUARE = {"size": {"height": 24, "width": 24}, "do_center_crop": False}


@pytest.mark.parametrize("options", [{}, SQUARE, {"resample": 0}, {"do_resize": False}, {"do_normalize": False}])
def test_pixels_are_those_of_the_processor(options: dict[str, Any]) -> None:
    processor = CLIPImageProcessorPil(**SETTINGS)
    preprocessor = FramePreprocessor(processor, **options)
    for number, size in enumerate(SIZES):
        frames = [make_image(number, size), make_image(number + 1, size)]
        expected = first_tensor(processor(images=frames, return_tensors="pt", **options))
        numbers = preprocessor(frames)
        scaled = torch.empty(numbers.shape)
        scale_pixels(numbers, preprocessor.scale, scaled)
        assert torch.equal(scaled, expected)


def test_a_processor_that_does_more_does_all_of_it() -> None:
    unscaled = {"do_rescale": False, "do_normalize": False}
    assert find_frame_reader(CLIPImageProcessorPil(**SETTINGS), unscaled)
    assert find_frame_reader(CLIPImageProcessorPil(**SETTINGS), {}) is None
    assert find_frame_reader(CLIPImageProcessorPil(**SETTINGS), unscaled | {"do_resize": False}) is None
    pads_afterwards = CLIPImageProcessorPil(**SETTINGS | {"crop_size": {"height": 20, "width": 25}})
    assert find_frame_reader(pads_afterwards, unscaled) is None
    pads_first = LlavaImageProcessorPil(**SETTINGS, do_pad=True)
    assert find_frame_reader(pads_first, unscaled) is None
    frame = make_image(0, SIZES[0])
    numbers = FramePreprocessor(pads_first)([frame])
    expected = first_tensor(pads_first(images=[frame], return_tensors="pt", **unscaled))
    assert torch.equal(numbers, expected)
