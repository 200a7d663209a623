"""The pruner finds tokens that are not finite; a loaded clip counts as many regions and bytes as it has frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunesid_cli import load
from prunesid_cli.inputs.listing import ListedFile
from prunesid_cli.pipeline.load import InputLoader, LoadedInput, input_decoder
from tests.conftest import Run
from tests.films import film
from tests.models.tiny import write_checkpoint


def test_a_cls_token_that_is_not_finite_is_found(run: Run, llava: Path, pictures: list[Path], tmp_path: Path) -> None:
    """A tower may overflow in the CLS token only."""
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


def test_a_clip_counts_its_frames(tmp_path: Path) -> None:
    model = load(str(write_checkpoint("video_llava", tmp_path / "model")), frames=4)
    clip = InputLoader(input_decoder(model.pruner, None))(0, ListedFile(str(film(tmp_path / "clip.mp4", 12))))
    assert isinstance(clip, LoadedInput)
    assert clip.num_images == 4
    assert clip.nbytes == sum(tensor.nbytes for tensor in clip.pixels.tensors.values()) > 0
