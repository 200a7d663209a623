"""Windows of frames that are pruned together: made by hand, in each family that reads clips, and by commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunesid_cli.errors import MediaError
from prunesid_cli.inputs.image import Media, media_from_frames
from prunesid_cli.inputs.video.frame_sampling import FrameSampling
from prunesid_cli.pipeline.frame_windows import MAX_WINDOW_TOKENS, check_window, join_windows
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection import METHODS
from prunesid_cli.selection.budget import Budget, Spread
from prunesid_cli.tokencache import open_cache
from prunesid_cli.types import CLS_NOT_READ, Encoded, Layout, Region, Segment, TokenSet
from tests.conftest import Run
from tests.models.harness import CLOSE, PROMPT, Model, kept_rows, make_clip, make_image, unread_cls_rows
from tests.models.tiny import TINY, tiny_model, write_checkpoint

SIDE, WIDTH = 6, 16


def clip_layout(num_frames: int) -> Layout:
    """The layout of a clip whose frames have SIDE x SIDE tokens."""
    size = SIDE**2
    regions = tuple(Region(i * size, SIDE, SIDE, SIDE, time=i / 2) for i in range(num_frames))
    return Layout("<video>", (num_frames * size,), regions)


def encoded_clip(frames: Sequence[torch.Tensor], cls_tokens: bool = False) -> Encoded:
    layout = clip_layout(len(frames))
    segments = []
    for frame, region in zip(frames, layout.regions, strict=True):
        cls = frame.mean(0) if cls_tokens else None
        segments.append(Segment(frame, frame.norm(dim=-1), cls, slots=tuple(region.slots)))
    return Encoded(tuple(segments), layout)


def still_frames(number: int, noise: float = 0.0) -> list[torch.Tensor]:
    """Copies of one frame, with noise."""
    generator = torch.Generator().manual_seed(1)
    frame = torch.randn(SIDE**2, WIDTH, generator=generator)
    return [frame + noise * torch.randn(SIDE**2, WIDTH, generator=generator) for _ in range(number)]


# Joining


@pytest.mark.parametrize(("count", "window", "sizes"), [(8, 8, [8]), (8, 4, [4, 4]), (8, 3, [2, 3, 3]), (3, 8, [3])])
def test_frames_are_divided_into_windows_of_nearly_equal_length(count: int, window: int, sizes: list[int]) -> None:
    frames = [torch.full((SIDE**2, WIDTH), float(i)) for i in range(count)]
    item = encoded_clip(frames)
    windows = join_windows(item, window)
    assert [segment.frames for segment in windows.segments] == sizes
    assert windows.layout == item.layout
    assert torch.equal(torch.cat([segment.features for segment in windows.segments]), torch.cat(frames))
    slots = [slot for segment in windows.segments for slot in segment.slots or ()]
    assert slots == list(range(count * SIDE**2))


def test_windows_of_one_frame_and_pictures_are_not_changed() -> None:
    item = encoded_clip(still_frames(3))
    assert join_windows(item, 1) is item
    picture = Encoded(item.segments, replace(item.layout, regions=(Region(0, SIDE, SIDE, SIDE),) * 3))
    assert join_windows(picture, 8) is picture


def test_parts_of_frames_are_joined_with_their_slots() -> None:
    rows = torch.arange(2 * SIDE**2).float()[:, None].expand(-1, WIDTH)
    half = SIDE**2 // 2
    parts = tuple(Segment(rows[i : i + half], slots=tuple(range(i, i + half))) for i in range(0, len(rows), half))
    upper, lower = join_windows(Encoded(parts, clip_layout(2)), 2).segments
    assert upper.slots == (*range(half), *range(2 * half, 3 * half))
    assert lower.features[:, 0].tolist() == [*range(half, 2 * half), *range(3 * half, 4 * half)]


def test_the_cls_tokens_of_later_frames_are_candidates_if_the_model_reads_them() -> None:
    unread = join_windows(encoded_clip(still_frames(2), cls_tokens=True), 2).segments[0]
    assert (len(unread.features), unread.capacity, unread.cls_slot) == (2 * SIDE**2, 2 * SIDE**2 + 1, CLS_NOT_READ)
    size = SIDE**2 + 1
    read = [
        replace(segment, slots=tuple(range(i * size + 1, (i + 1) * size)), cls_slot=i * size)
        for i, segment in enumerate(encoded_clip(still_frames(2), cls_tokens=True).segments)
    ]
    layout = Layout("<video>", (2 * size,), tuple(Region(i * size + 1, SIDE, SIDE, SIDE, time=i / 2) for i in range(2)))
    (window,) = join_windows(Encoded(tuple(read), layout), 2).segments
    assert (window.cls_slot, window.slots) == (0, tuple(range(1, 2 * size)))
    assert window.saliency is not None
    assert window.saliency[SIDE**2] == window.saliency.max()
    assert window.capacity == 2 * size


def test_a_window_of_too_many_tokens_is_refused() -> None:
    check_window("a.mp4", clip_layout(MAX_WINDOW_TOKENS // SIDE**2), 1024)
    check_window("a.mp4", clip_layout(1024), MAX_WINDOW_TOKENS // SIDE**2)
    with pytest.raises(
        MediaError, match=f"a.mp4: a window of 500 frames has 18,000 tokens, .* {MAX_WINDOW_TOKENS:,}"
    ) as caught:
        check_window("a.mp4", clip_layout(1024), 500)
    assert caught.value.hint == f"give --window {MAX_WINDOW_TOKENS // SIDE**2}"


# Selecting


def pruner(keep: int | None, window: int, method: str = "prunesid", **options: bool) -> Pruner:
    return Pruner(None, Budget(keep, **options), method, (), FrameSampling(window=window))  # type: ignore[arg-type]


def kept_positions(kept: TokenSet) -> set[int]:
    """Positions within a frame whose token is kept in any of the frames."""
    return {slot % SIDE**2 for slot in kept.slots if slot != CLS_NOT_READ}


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_still_scene_is_kept_once_in_a_window(noise: float) -> None:
    """Eight equal frames of 36 different patches: frame by frame the same patches are kept, in a window other ones."""
    item = encoded_clip(still_frames(8, noise))
    (single,) = pruner(32, 1).prune([item])
    (joint,) = pruner(32, 8).prune([join_windows(item, 8)])
    assert single.kept == joint.kept == 32
    assert len(kept_positions(single)) <= 10
    assert len(kept_positions(joint)) >= 28


def test_a_patch_that_changes_is_kept_in_every_frame() -> None:
    """All other patches of the scene stay the same."""
    frames = [frame.clone() for frame in still_frames(8)]
    generator = torch.Generator().manual_seed(2)
    for frame in frames:
        frame[17] = 2 * torch.randn(WIDTH, generator=generator)
    (kept,) = pruner(43, 8).prune([join_windows(encoded_clip(frames), 8)])
    assert {slot // SIDE**2 for slot in kept.slots if slot % SIDE**2 == 17} == set(range(8))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("spread", [Spread.WITHIN_ITEM, Spread.NONE])
def test_the_budget_is_kept_in_the_order_of_time(method: str, spread: Spread) -> None:
    for item in (encoded_clip(still_frames(7, 0.1)), encoded_clip(still_frames(7, 0.1), cls_tokens=True)):
        for window in (2, 7):
            windows = join_windows(item, window)
            capacity = sum(segment.capacity for segment in windows.segments)
            for count in (1, 2, 7, 40, item.layout.total - 1, item.layout.total):
                (kept,) = pruner(count, window, method, spread=spread).prune([windows])
                num_distinct = len(set(kept.slots)) + max(kept.slots.count(CLS_NOT_READ) - 1, 0)
                assert kept.kept == num_distinct == min(count, capacity)
                assert list(kept.slots) == sorted(kept.slots)


def test_windows_and_pictures_of_one_shape_do_not_mix() -> None:
    """In one batch, each keeps the tokens that it keeps alone."""
    clip = join_windows(encoded_clip(still_frames(2)), 2)
    (window,) = clip.segments
    picture = Encoded((replace(window, frames=1),), Layout("<image>", (2 * SIDE**2,), (Region(0, SIDE, 2 * SIDE, 12),)))
    batch = [kept.slots for kept in pruner(40, 2).prune([clip, picture])]
    assert batch == [pruner(40, 2).prune([item])[0].slots for item in (clip, picture)]
    assert batch[0] != batch[1]


# The families

CLIP_FAMILIES = [name for name in sorted(TINY) if tiny_model(name).clip_inputs and "-" not in name]
QUICK_FAMILIES = ("llava_onevision", "qwen2_5_vl", "smolvlm", "video_llava")
"""Pooled frames, M-RoPE, times between frames, and frames with a CLS token."""


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK_FAMILIES else pytest.param(name, marks=pytest.mark.slow) for name in CLIP_FAMILIES],
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))


def window_pruner(model: Model, keep: str, window: int) -> Pruner:
    return replace(model.pruner(keep), sampling=FrameSampling(window=window))


def prune(pruner: Pruner, media: Media) -> TokenSet:
    return pruner.prune(pruner.encode([pruner.preprocess(media)]))[0]


def test_keeping_all_in_windows_is_the_stock_model(model: Model) -> None:
    media = make_clip(1)
    item = prune(window_pruner(model, "all", 4), media)
    prompt, inputs = model.language.embed(PROMPT, [item]), model.stock_inputs([media], PROMPT)
    with torch.no_grad():
        expected = model.stock(**inputs).logits[0, -1]
    torch.testing.assert_close(model.language.logits([prompt])[0], expected, **CLOSE)


def test_kept_tokens_of_windows_have_the_positions_of_the_stock_model(model: Model) -> None:
    media = make_clip(1)
    item = prune(window_pruner(model, "31", 4), media)
    assert item.kept == 31
    inputs = model.stock_inputs([media], PROMPT)
    stock, kept = model.stock_language_inputs(inputs), kept_rows(model, inputs, [item])
    prompt = model.language.embed(PROMPT, [item])
    embeds = model.language_inputs(prompt)["inputs_embeds"][0]
    is_stock_row = ~unread_cls_rows(prompt, [item])
    torch.testing.assert_close(embeds[is_stock_row], stock["inputs_embeds"][0, kept], **CLOSE)
    if prompt.positions is not None:
        assert torch.equal(prompt.positions, stock["position_ids"][-3:, 0, kept])


def test_a_window_of_a_still_clip_keeps_more_patches(model: Model) -> None:
    picture = make_image(5, (320, 240))
    media = media_from_frames((picture,) * 8, tuple(i / 2 for i in range(8)))
    positions = []
    for window in (1, 8):
        item = prune(window_pruner(model, "64", window), media)
        starts = [(region.first, region.rows * region.columns) for region in item.layout.regions]
        positions.append(
            {slot - first for slot in item.slots for first, size in starts if first <= slot < first + size}
        )
        assert item.kept == 64
    single, joint = positions
    assert len(joint) >= 2 * len(single)


# The commands


def test_ask_is_compress_and_answer_in_windows(run: Run, model: Model, tmp_path: Path) -> None:
    from tests.films import film  # skips the test if PyAV is not installed

    film(tmp_path / "a.mp4", 30)
    common = ("-m", model.folder, "-k", "20", "--frames", "6", "--window", "3")
    done = run("compress", tmp_path / "a.mp4", "--out", tmp_path / "c", *common)
    assert done.code == 0, done.err
    (record,) = run("answer", tmp_path / "c", PROMPT, "--max-new-tokens", "8").records
    (asked,) = run("ask", tmp_path / "a.mp4", PROMPT, *common, "--max-new-tokens", "8", "--json").records
    assert (record["answer"], record["kept"], record["tokens"]) == (asked["answer"], 20, asked["tokens"])
    assert [item.sampling for _, item in open_cache(tmp_path / "c").items()] == ["6 frames in windows of 3"]
    other = run("compress", tmp_path / "a.mp4", "--out", tmp_path / "c", *common[:-2])
    assert (other.code, "clips with 6 frames in windows of 3, not 6 frames" in other.err) == (1, True)


def test_a_clip_with_a_window_too_large_is_skipped(run: Run, tmp_path: Path) -> None:
    from tests.films import film

    folder = write_checkpoint("video_llava", tmp_path / "m")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "b.png")
    film(tmp_path / "a.mp4", 40)
    common = ("-m", folder, "--frames", "40", "--window", "40")
    asked = run("ask", tmp_path / "a.mp4", PROMPT, *common)
    assert (asked.code, "a window of 40 frames has 10,240 tokens" in asked.err) == (1, True)
    assert "give --window 32" in asked.err
    done = run("compress", tmp_path, "--out", tmp_path / "c", *common, "--json")
    assert (done.code, ["error" in record for record in done.records]) == (3, [True, False])
