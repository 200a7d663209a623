"""Frames that a tower sees as a whole -> pixels, by the checkpoint's image processor, but for resizing and scaling.

Both take most of the processor's time for no good reason: it resizes by Pillow, as is done here before, but copies the
large frame several times; and its arithmetic on pixels is done on the tower's device later (`pixel_scale.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL.Image import Image, fromarray
from torch import Tensor
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension

from prunesid_cli.models.shared.pixel_scale import first_tensor, split_scale

PROBE_SHAPES = ((31, 50, 3), (77, 40, 3))
"""Height, width and channels of images on which a processor is tried."""
Resize = Callable[[Image], Image]


class FramePreprocessor:
    """Preprocesses images, or the frames of clips.

    Args:
        image_processor: An image processor of transformers with the PIL backend.
        call_options: Further arguments of its calls.

    Attributes:
        image_processor: The same.
        scale: How the pixels are scaled; see `split_scale`.
    """

    def __init__(self, image_processor: Any, **call_options: Any) -> None:
        self.image_processor, self.call_options = image_processor, call_options
        self.scale, self._options = split_scale(image_processor, **call_options)
        self._resize = find_resize(image_processor, self._options)
        if self._resize:
            self._options = {**self._options, "do_resize": False}

    def __call__(self, frames: Sequence[Image]) -> Tensor:
        """RGB frames -> pixels [S, 3, H, W]."""
        images = list(map(self._resize, frames)) if self._resize else list(frames)
        return first_tensor(self.image_processor(images=images, return_tensors="pt", **self._options))


def find_resize(image_processor: Any, options: Mapping[str, Any]) -> Resize | None:
    """Find out how an image processor resizes images, so that it can be done before it is called.

    Args:
        image_processor: The image processor.
        options: Arguments of its calls.

    Returns:
        The function; None if the processor does something else before, which is tried on images.
    """
    size, resample, do_resize = (
        options.get(name, getattr(image_processor, name)) for name in ("size", "resample", "do_resize")
    )
    if not do_resize or set(dict(size)) not in ({"shortest_edge"}, {"height", "width"}):
        return None

    def resize(image: Image) -> Image:
        height, width = size.get("height"), size.get("width")
        if height is None:
            shape_only = np.broadcast_to(np.uint8(0), (3, image.height, image.width))
            height, width = get_resize_output_image_size(
                shape_only, size["shortest_edge"], default_to_square=False, input_data_format=ChannelDimension.FIRST
            )
        return image.resize((width, height), resample)

    for shape in PROBE_SHAPES:
        image = fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        by_processor = image_processor(images=[image], return_tensors="np", **options)
        by_us = image_processor(images=[resize(image)], return_tensors="np", **{**options, "do_resize": False})
        if not all(np.array_equal(by_processor[name], by_us[name]) for name in by_processor):
            return None
    return resize
