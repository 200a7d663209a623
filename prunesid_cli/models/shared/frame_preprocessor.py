"""Frames that a tower sees as a whole -> pixels, as the checkpoint's image processor reads them.

Most image processors only resize, crop the center, and scale. Scaling is done on the tower's device (`pixel_scale.py`).
Resizing and cropping are done here, by Pillow, if that gives the same numbers: the processor does the same, but copies
the large frame several times before, and checks its arguments at each call. Otherwise the processor does all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image, fromarray
from torch import Tensor
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import ChannelDimension

from prunesid_cli.models.shared.pixel_scale import first_tensor, split_scale

PROBE_SHAPES = ((31, 50, 3), (77, 40, 3))
"""Height, width and channels of images on which a processor is tried."""
ReadFrame = Callable[[Image], NDArray[np.uint8]]
"""An RGB image -> its pixels [3, H, W]."""


class FramePreprocessor:
    """Preprocesses images, or the frames of clips.

    Args:
        image_processor: An image processor of transformers with the PIL backend.
        options: Further arguments of its calls.

    Attributes:
        image_processor: The same.
        scale: How the pixels are scaled; see `split_scale`.
    """

    def __init__(self, image_processor: Any, **options: Any) -> None:
        self.image_processor = image_processor
        self.scale, self._options = split_scale(image_processor, **options)
        self._read_frame = find_frame_reader(image_processor, self._options)

    def __call__(self, frames: Sequence[Image]) -> Tensor:
        """RGB frames -> pixels [S, 3, H, W]."""
        if self._read_frame:
            return torch.from_numpy(np.stack(list(map(self._read_frame, frames))))
        return first_tensor(self.image_processor(images=list(frames), return_tensors="pt", **self._options))


def find_frame_reader(image_processor: Any, options: Mapping[str, Any]) -> ReadFrame | None:
    """Find a function that resizes and crops as an image processor does.

    Args:
        image_processor: The image processor.
        options: Arguments of its calls.

    Returns:
        The function; None if the processor does something else, which is tried on images.
    """
    names = ("do_resize", "size", "resample", "do_center_crop", "crop_size")
    settings = {name: options.get(name, getattr(image_processor, name, None)) for name in names}
    size = dict(settings["size"]) if settings["do_resize"] else {}
    crop = dict(settings["crop_size"]) if settings["do_center_crop"] else {}
    if set(size) not in ({"shortest_edge"}, {"height", "width"}) or max(crop.values(), default=0) > min(size.values()):
        return None

    def read_frame(image: Image) -> NDArray[np.uint8]:
        if "height" in size:
            height, width = size["height"], size["width"]
        else:
            shape_only = np.broadcast_to(np.uint8(0), (3, image.height, image.width))
            height, width = get_resize_output_image_size(
                shape_only, size["shortest_edge"], default_to_square=False, input_data_format=ChannelDimension.FIRST
            )
        image = image.resize((width, height), settings["resample"])
        if crop:
            left, top = (image.width - crop["width"]) // 2, (image.height - crop["height"]) // 2
            image = image.crop((left, top, left + crop["width"], top + crop["height"]))
        return np.asarray(image).transpose(2, 0, 1)

    for shape in PROBE_SHAPES:
        image = fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        expected = first_tensor(image_processor(images=[image], return_tensors="pt", **options))
        pixels = torch.from_numpy(np.stack([read_frame(image)]))
        if pixels.dtype != expected.dtype or not torch.equal(pixels, expected):
            return None
    return read_frame
