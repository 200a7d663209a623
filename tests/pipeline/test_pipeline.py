"""Tokens that are not finite, and how much a clip counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunesid_cli.pipeline.load import LoadedInput
from prunesid_cli.types import Layout, Pixels, Provenance, Region
from tests.conftest import Run


def test_a_cls_token_that_is_not_finite_is_found(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """A tower may overflow in the CLS token alone."""
    from dataclasses import replace

    from prunesid_cli.errors import NonFiniteError
    from prunesid_cli.inputs.image import load_image
    from prunesid_cli.models import load_family
    from prunesid_cli.models.loading.checkpoint import resolve
    from prunesid_cli.models.loading.placement import choose_placement
    from prunesid_cli.models.loading.weights import load_config
    from prunesid_cli.pipeline.pruner import Pruner
    from prunesid_cli.selection.budget import Budget

    checkpoint = resolve(str(llava))
    vision = load_family("llava").load_vision_half(
        checkpoint, choose_placement("cpu", "auto", "auto", load_config(checkpoint))
    )
    pruner = Pruner(vision, Budget.parse("64"), "prunesid", ())
    first, second = pruner.encode([vision.preprocess(load_image(path)) for path in pictures[:2]])
    (segment,) = second.segments
    assert segment.cls is not None
    cls = segment.cls.clone()
    cls[0] = float("inf")
    with pytest.raises(NonFiniteError) as error:
        pruner.keep([first, replace(second, segments=(replace(segment, cls=cls),))], [64, 64])
    assert error.value.rows == [1]


def test_a_clip_counts_its_frames() -> None:
    frames = tuple(Region(64 * i, 8, 8, 8, time=float(i)) for i in range(32))
    pixels = Pixels({"pixel_values": torch.zeros(32, 3, 8, 8)}, Layout("<video>", (2048,), frames))
    clip = LoadedInput(0, Provenance(source="clip.mp4", digest="", size=(8, 8), notes=()), pixels)
    assert (clip.regions, clip.bytes) == (32, 32 * 3 * 8 * 8 * 4)
