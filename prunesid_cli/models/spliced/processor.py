"""Runs the processor of any type of model on one image."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from PIL import Image

from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.pixel_scale import split_scale
from prunesid_cli.models.shared.processor import (
    ProcessedImage,
    load_processor,
    load_processor_settings,
    modality_ids,
    process_image,
    resized_short_side,
    write_rows,
)
from prunesid_cli.models.spliced.table import TYPES, UNKNOWN, SplicedType

PAN_AND_SCAN_SETTINGS = (
    "do_pan_and_scan",
    "pan_and_scan_min_crop_size",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
)
"""Settings of Gemma 3's image processor that its processor overrides, unless each call passes them."""
FIXED_SIZE_PIXELS = ("square", "crops")
"""Kinds of pixels of one size, whatever the image's; with pan-and-scan there are crops as well."""
TEXT_PROBE_SIZES = ((64, 64), (1600, 1200))
"""Widths and heights of images whose texts show which control tokens a processor writes."""


def row_of(checkpoint: Checkpoint) -> SplicedType:
    """How a checkpoint is treated: by the table, as it was found by trial, or in the most careful way."""
    return TYPES.get(checkpoint.model_type) or checkpoint.spliced_type or UNKNOWN


class SplicedProcessor:
    """A checkpoint's processor.

    Args:
        checkpoint: Where its files are.

    Attributes:
        processor: The processor of transformers. Its image processor stands in for the video processor, which needs
            torchvision.
        image_id: The placeholder of an image.
        scale: See `split_scale`.
        clips_need: A package that is missing, without which clips cannot be written into a prompt; else empty.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.row = row_of(checkpoint)
        self.clips_need = missing_package(self.row.clips_need)
        uses_own = self.row.clips_need and not self.clips_need
        module, _, name = ("" if uses_own else self.row.processor).partition(":")
        found = getattr(import_module(f"transformers.models.{module}.processing_{module}"), name) if module else None
        self.processor = load_processor(checkpoint, found, needs_video_processor=True)
        for setting in ("num_frames", "fps"):  # SmolVLM's processor passes them to its chat template
            setattr(self.processor.image_processor, setting, None)
        self.image_id = modality_ids(load_config(checkpoint))["image"]
        options: dict[str, Any] = {}
        if self.row.writes_rows:
            self.settings = load_processor_settings(checkpoint)
            self.processor.image_token = self.settings.get("image_token", "[IMG]")
            self.token_side = self.settings.get("patch_size", 16) * self.settings.get("spatial_merge_size", 1)
            options = {"patch_size": self.token_side}
        images = self.processor.image_processor
        pan_and_scan = {
            name: value for name in PAN_AND_SCAN_SETTINGS if (value := getattr(images, name, None)) is not None
        }
        if pan_and_scan:
            options["do_pan_and_scan"] = False
        self.scale, options = split_scale(images, **options)
        self.options = options | pan_and_scan

    def fixed_short_side(self) -> int | None:
        """Pixels of an image's shorter side that are read, whatever its size. None if more are read of a larger one."""
        images = self.processor.image_processor
        is_fixed = self.row.pixels in FIXED_SIZE_PIXELS and not getattr(images, "do_pan_and_scan", None)
        return resized_short_side(images) if is_fixed else None

    def process(self, image: Image.Image) -> ProcessedImage:
        """Image -> what the stock model takes for it, and its text in a prompt."""
        if not self.row.writes_rows:
            return process_image(self.processor, frozenset({self.image_id}), image, **self.options)
        tensors = self.processor.image_processor(images=[image], return_tensors="pt", **self.options)
        rows, columns = (int(length) // self.token_side for length in tensors["image_sizes"][0])
        return ProcessedImage(tensors, write_rows(self.processor, self.settings, rows), (columns,) * rows)

    def item_patterns(self) -> tuple[str, ...]:
        """Patterns of the control tokens that the processor writes for images; numbers in them may be any."""
        text = "".join(self.process(random_image(size)).text for size in TEXT_PROBE_SIZES)
        tokens = [token.content for token in self.processor.tokenizer.added_tokens_decoder.values()]
        written = [re.sub(r"\d+", r"\\d+", re.escape(token)) for token in tokens if token in text]
        return tuple(sorted({*written}))


def missing_package(name: str) -> str:
    """The name of a package if it is not installed, else nothing."""
    return name if name and find_spec(name) is None else ""


def random_image(size: tuple[int, int]) -> Image.Image:
    """An image of random colours, the same in each call; `size` is width and height."""
    width, height = size
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
