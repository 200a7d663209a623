"""Pixels travel as whole numbers, 0 to 255, and become what the tower reads on the tower's device.

An image processor ends with the same arithmetic for each number: rescale, then normalize. It is taken out of the
processor here, and done by a table of the 256 possible results for each channel. So the tower reads the same bits as
from the processor, on every device; a quarter of the bytes is moved; and the host does none of the arithmetic. Where
frames need no more than to be cut into patches then, the device does that, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from prunesid_cli.runtime.device import upload
from prunesid_cli.types import Patching, Pixels, PixelScale, Placement

NUM_LEVELS, NUM_CHANNELS = 256, 3
CPU_CHUNK = 2**18
"""Pixels that a CPU scales at once, so that what is in between stays in its caches: 10 ms instead of 26 for an image of
1280 x 960."""
SCALE_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
PROBE_SIZE = (32, 48)


def split_scale(image_processor: Any, **options: Any) -> tuple[PixelScale | None, dict[str, Any]]:
    """Find out how an image processor gives whole numbers, 0 to 255, and what it else makes of them.

    Args:
        image_processor: An image processor of transformers with the PIL backend.
        options: Arguments of its calls.

    Returns:
        The arithmetic, and the arguments of calls that leave it out. None, and the same arguments, if the processor
        does more with the numbers than this arithmetic, which is tried on an image.
    """
    settings = {name: getattr(image_processor, name) for name in SCALE_SETTINGS} | options
    mean, std = (
        tuple(float(number) for number in np.broadcast_to(settings[name], NUM_CHANNELS))
        for name in ("image_mean", "image_std")
    )
    scale = PixelScale(
        factor=settings["rescale_factor"] if settings["do_rescale"] else 1.0,
        mean=mean if settings["do_normalize"] else (0.0,) * NUM_CHANNELS,
        std=std if settings["do_normalize"] else (1.0,) * NUM_CHANNELS,
    )
    unscaled = {**options, "do_rescale": False, "do_normalize": False}
    probe = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*PROBE_SIZE, NUM_CHANNELS), dtype=np.uint8))
    numbers, expected = (
        first_tensor(image_processor(images=[probe], return_tensors="pt", **call)) for call in (unscaled, options)
    )
    scaled = torch.empty(expected.shape)
    scale_pixels(numbers.to(torch.uint8), scale, scaled)
    return (scale, unscaled) if torch.equal(scaled, expected.float()) else (None, options)


def first_tensor(tensors: Mapping[str, Any]) -> Tensor:
    """The pixels that an image processor gives: [S, 3, H, W], or patches [P, 3 * E]."""
    pixels: Tensor = next(iter(tensors.values()))
    return pixels.flatten(0, -4) if pixels.ndim > 4 else pixels


def upload_pixels(items: Sequence[Pixels], placement: Placement, dtype: torch.dtype | None = None) -> Tensor:
    """Copy the pixels of a batch to the tower's device, as the tower reads them.

    Args:
        items: The first tensor of each holds its pixels; see `Pixels`.
        placement: The device, and the precision.
        dtype: Another precision.

    Returns:
        The pixels of all items, one after the other: [S, 3, H, W], or patches [P, 3 * E].
    """
    dtype, tensors = dtype or placement.dtype, [next(iter(item.tensors.values())) for item in items]
    for number, patching in enumerate(item.patching for item in items):
        if patching:
            tensors[number] = cut_patches(upload([tensors[number]], placement.device), patching)
    shape = (sum(map(len, tensors)), *tensors[0].shape[1:])
    batch, start = torch.empty(shape, dtype=dtype, device=placement.device), 0
    for scale, group in groupby(zip(items, tensors, strict=True), lambda pair: pair[0].scale):
        numbers = [tensor for _, tensor in group]
        for part in numbers if placement.device.type == "cpu" else [upload(numbers, placement.device)]:
            scale_pixels(part, scale, batch[start : start + len(part)])
            start += len(part)
    return batch


def cut_patches(frames: Tensor, patching: Patching) -> Tensor:
    """Cut frames of one size into patches, as the image processors of Qwen do.

    Args:
        frames: [S, H, W, 3]; H and W are multiples of a cell's side.
        patching: How.

    Returns:
        [P, 3 * E]: patches cell by cell, and in each the channels, of each channel the frames, of each frame the rows.
    """
    side, cell, shared = patching.side, patching.cell, patching.frames
    height, width = (length // (cell * side) for length in frames.shape[1:3])
    patches = frames.view(-1, height, cell, side, width, cell, side, NUM_CHANNELS).permute(0, 1, 4, 2, 5, 7, 3, 6)
    patches = patches.reshape(len(frames), -1, NUM_CHANNELS, side * side)
    patches = torch.cat([patches, patches[-1:].expand(-len(frames) % shared, -1, -1, -1)])
    return patches.unflatten(0, (-1, shared)).permute(0, 2, 3, 1, 4).reshape(-1, NUM_CHANNELS * shared * side * side)


def scale_pixels(numbers: Tensor, scale: PixelScale | None, out: Tensor) -> None:
    """Compute what an image processor makes of whole numbers.

    Args:
        numbers: uint8, [S, 3, ...] or [P, 3 * E], on the device of `out`.
        scale: The arithmetic; None if the numbers were scaled already.
        out: Filled with the result, in its precision; contiguous, of the same shape.
    """
    if scale is None:
        out.copy_(numbers)
        return
    table, offsets = _device_table(scale, out.device, out.dtype)
    rows = max(1, CPU_CHUNK // numbers[0].numel()) if numbers.device.type == "cpu" else len(numbers)
    for part, target in zip(numbers.split(rows), out.split(rows), strict=True):
        places = part.view(len(part), NUM_CHANNELS, -1).int().add_(offsets)
        torch.index_select(table, 0, places.flatten(), out=target.flatten())


@cache
def _device_table(scale: PixelScale, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The results for all levels of all channels, [3 * 256], and where each channel begins, [3, 1].

    The order of operations is that of transformers.
    """
    levels = (np.arange(NUM_LEVELS).astype(np.float64) * scale.factor).astype(np.float32)
    mean, std = (np.asarray(values, np.float32)[:, None] for values in (scale.mean, scale.std))
    table = torch.from_numpy((levels - mean) / std).flatten()
    offsets = torch.arange(0, len(table), NUM_LEVELS, dtype=torch.int32)[:, None]
    return table.to(device, dtype), offsets.to(device)
