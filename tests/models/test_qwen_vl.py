"""Qwen-VL: saliency under windows and packing, positions, large images, extreme sizes, clips."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AttentionInterface, AutoProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward
from transformers.vision_utils import get_vision_window_index

from prunesid_cli.errors import MediaError, ModelError, UnsupportedModel
from prunesid_cli.inputs.image import Media, media_from_frames, media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.qwen_vl.processor import (
    FRAME_SIZING,
    FrameReader,
    frame_size_per_frame,
    load_clip_settings,
    read_image_settings,
)
from prunesid_cli.models.shared import registered_attention
from prunesid_cli.models.shared.processor import placeholder_ids
from prunesid_cli.models.spliced.halves import WINDOW_SIDE
from prunesid_cli.selection import select
from prunesid_cli.types import Encoded, Layout, Pixels, TokenSet
from tests.conftest import Run
from tests.models.harness import (
    CLOSE,
    CPU,
    GENERATION,
    PROMPT,
    Model,
    check_keeping_all,
    kept_rows,
    make_clip,
    make_image,
    variant_marks,
)
from tests.models.tiny import TINY, tiny_model, write_checkpoint
from tests.models.tiny.base import tower_pixels

VARIANTS = [pytest.param(name, marks=variant_marks(name)) for name in sorted(TINY) if name.startswith("qwen")]
EXACT = {"atol": 1e-5, "rtol": 0.0}
needs_torchvision = pytest.mark.skipif(find_spec("torchvision") is None, reason="stock video processors need it")


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint(request.param, tmp_path_factory.mktemp(request.param)), tiny_model(request.param))


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose positions in time depend on seconds."""
    return Model(write_checkpoint("qwen2_5_vl", tmp_path_factory.mktemp("timed")), tiny_model("qwen2_5_vl"))


def slow_clip(frames: int, seconds: float, size: tuple[int, int] = (84, 56)) -> Media:
    images = tuple(make_image(i, size) for i in range(frames))
    return media_from_frames(images, tuple(i * seconds for i in range(frames)))


@pytest.fixture
def attention_weights() -> list[Tensor]:
    """The attention weights of each call of the attention implementation `recorded` [H, N, N]."""
    weights: list[Tensor] = []

    def recorded(module: Any, *args: Any, **kwargs: Any) -> Any:
        output, call_weights = eager_attention_forward(module, *args, **kwargs)
        weights.append(call_weights[0])
        return output, call_weights

    AttentionInterface.register("recorded", recorded)
    return weights


def rows_by_slot(items: list[Encoded], part: str) -> Tensor:
    """An attribute of all segments, by slot, item after item."""
    rows = []
    for item in items:
        slots = torch.tensor([slot for segment in item.segments for slot in segment.slots])
        rows.append(torch.cat([getattr(segment, part) for segment in item.segments])[slots.argsort()])
    return torch.cat(rows)


def tower_inputs(items: list[Pixels]) -> tuple[Tensor, Tensor]:
    grids = [list(item.tensors.values())[1] for item in items]
    return torch.cat([tower_pixels(item) for item in items]), torch.cat(grids)


def test_saliency_is_the_attention_that_the_stock_tower_pays(
    model: Model, attention_weights: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registered_attention, "MAX_ATTENTION_WEIGHTS", 5000)  # several parts
    pixels = [model.vision.preprocess(media) for media in (model.media()[1], model.media()[2], make_clip(3, 3))]
    patches, grids = tower_inputs(pixels)
    tower = model.stock.model.visual
    last = max(getattr(tower, "fullatt_block_indexes", [len(tower.blocks) - 1]))
    with monkeypatch.context() as patch:
        patch.setattr(tower.blocks[last].attn.config, "_attn_implementation", "recorded")
        hook = tower.blocks[last].register_forward_pre_hook(lambda module, args: attention_weights.clear())
        after = tower.blocks[last].register_forward_hook(lambda module, args, out: kept.extend(attention_weights))
        kept: list[Tensor] = []
        with torch.no_grad():
            stock = tower(patches, grid_thw=grids)
        hook.remove()
        after.remove()
    assert len(kept) == int(grids[:, 0].sum())
    expected = torch.cat([weights.mean((0, 1)) for weights in kept]).view(-1, 4).sum(1)
    if model.folder.name.startswith("qwen2_5"):
        index, _ = get_vision_window_index(grids, spatial_merge_size=2, window_size=112, patch_size=14)
        assert not torch.equal(index, index.sort().values)
        expected = expected[index.argsort()]
    items = model.vision.encode(pixels)
    torch.testing.assert_close(rows_by_slot(items, "saliency"), expected, **EXACT)
    torch.testing.assert_close(rows_by_slot(items, "features"), stock.pooler_output, **EXACT)
    if getattr(stock, "deepstack_features", None):
        torch.testing.assert_close(rows_by_slot(items, "extra"), torch.cat(stock.deepstack_features, -1), **EXACT)


def test_saliency_adds_to_one_in_each_image(model: Model) -> None:
    items = model.vision.encode([model.vision.preprocess(media) for media in model.media()])
    for item in items:
        for region in item.layout.regions:
            windows = [segment for segment in item.segments if segment.slots[0] in region.slots]
            assert sum(float(segment.saliency.sum()) for segment in windows) == pytest.approx(1, abs=1e-4)


def test_large_images_are_cut_into_windows(model: Model) -> None:
    pixels = model.vision.preprocess(media_from_image(make_image(5, (1250, 1100))))
    (item,) = model.vision.encode([pixels])
    assert item.layout.total > WINDOW_SIDE * WINDOW_SIDE and len(item.segments) == 2
    with torch.no_grad():
        stock = model.vision.base.visual(*tower_inputs([pixels])).pooler_output
    assert torch.equal(rows_by_slot([item], "features"), stock)
    (kept,) = model.pruner("50").prune([item])
    torch.testing.assert_close(kept.tokens[:, : stock.shape[1]], stock[list(kept.slots)], **CLOSE)
    (unpruned,) = model.pruner().prune([item])
    assert unpruned.slots == tuple(range(item.layout.total)) and unpruned.is_unpruned


def encode_mixed(model: Model, keep: str) -> tuple[list[Pixels], list[TokenSet]]:
    """Preprocess and prune an image, a clip of an odd number of frames 0.7 s apart, and another image."""
    first, second = model.images()[1:3]
    pixels = [model.vision.preprocess(media) for media in (first, slow_clip(5, 0.7), second)]
    pruner = model.pruner(keep)
    return pixels, pruner.keep(pruner.encode(pixels), [pruner.mean_tokens(item.layout.total) for item in pixels])


def stock_positions(model: Model, prompt: str, pixels: list[Pixels]) -> tuple[Tensor, Tensor]:
    """The ids [L] of an unpruned prompt, and the positions [3, L] that the stock model gives them."""
    ids = model.language.tokenize(prompt, [item.layout for item in pixels]).tolist()
    runs = iter([run for item in pixels for run in item.layout.runs])
    ids = torch.tensor(
        [token for i in ids for token in [i] * (next(runs) if i in model.language.placeholder_ids else 1)]
    )
    kinds = torch.tensor(model.processor.create_mm_token_type_ids(ids[None].tolist()))
    grids: dict[str, Tensor] = {}
    for item in pixels:
        for name, value in item.tensors.items():
            if not name.startswith("pixel"):
                grids[name] = torch.cat([grids[name], value]) if name in grids else value
    return ids, model.stock.model.get_rope_index(ids[None], mm_token_type_ids=kinds, **grids)[0][:, 0]


@pytest.mark.parametrize("keep", ["all", "3"])
def test_positions_of_images_and_clips_are_the_stock_models(model: Model, keep: str) -> None:
    prompt = "first <image> then <video> and <image> what is shown?"
    pixels, items = encode_mixed(model, keep)
    ids, expected = stock_positions(model, prompt, pixels)
    embedded = model.language.embed(prompt, items)
    left = kept_rows(model, {"input_ids": ids[None]}, items)
    assert len(left) < len(ids) or keep == "all"
    assert torch.equal(embedded.positions, expected[:, left])


def test_time_may_run_ahead_of_the_words_that_follow(timed: Model) -> None:
    """Positions in time can be beyond those of the question. Decoding then continues as in the stock model."""
    media = slow_clip(12, 20.0)
    regions = timed.vision.preprocess(media).layout.regions
    assert regions[-1].tick == 400
    check_keeping_all(timed, [media], PROMPT)


def test_published_selection_does_not_use_saliency(model: Model) -> None:
    (item,) = model.vision.encode([model.vision.preprocess(model.images()[0])])
    (segment,) = item.segments
    (kept,) = model.pruner("23", "prunesid-published").prune([item])
    (expected,) = select(segment.features[None], None, [23], "prunesid-published")
    assert list(kept.slots) == expected.tolist()


EXTREMES = ((1, 1), (3, 3), (27, 27), (1, 150), (3, 400), (400, 3), (1, 1), (30, 5900), (2000, 10))


@pytest.mark.parametrize("size", EXTREMES)
def test_extreme_sizes_are_read_as_the_stock_processor_does(model: Model, size: tuple[int, int]) -> None:
    media = media_from_image(make_image(1, size))
    pixels = model.vision.preprocess(media)
    inputs = model.stock_inputs([media], PROMPT)
    assert torch.equal(tower_pixels(pixels), inputs["pixel_values"])
    (region,) = pixels.layout.regions
    assert [1, 2 * region.rows, 2 * region.columns] == inputs["image_grid_thw"][0].tolist()
    upright = region.rows >= region.columns if size[1] >= size[0] else region.rows <= region.columns
    assert upright


def test_only_an_image_that_is_too_long_fails(model: Model, run: Run, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="2010 x 10 pixels"):
        model.vision.preprocess(media_from_image(make_image(1, (2010, 10))))
    with pytest.raises(MediaError, match="2010 x 10 pixels"):
        model.vision.preprocess(slow_clip(2, 0.5, (2010, 10)))
    for name, size in (("good", (100, 80)), ("long", (2010, 10))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    ran = run("compress", tmp_path, "-m", model.folder, "-k", "7", "--out", tmp_path / "cache")
    assert ran.code == 3 and "long.png" in ran.err
    assert len(run("answer", tmp_path / "cache", PROMPT, "--max-new-tokens", 2).records) == 1


def test_a_clip_of_one_frame_is_read_twice(model: Model) -> None:
    clip = slow_clip(1, 0.5)
    doubled = media_from_frames((clip.image, clip.image), (0.0, 0.0))
    a, b = model.vision.preprocess(clip), model.vision.preprocess(doubled)
    assert a.layout == b.layout
    assert torch.equal(tower_pixels(a), tower_pixels(b))


def test_frames_of_a_pair_share_a_patch(model: Model) -> None:
    """A clip without motion has the patches of its image, if both have the same size."""
    still = make_image(4, (320, 320))
    media = media_from_frames((still,) * 4, (0.0, 0.5, 1.0, 1.5))
    pixels = tower_pixels(model.vision.preprocess(media))
    image = tower_pixels(model.vision.preprocess(media_from_image(still)))
    assert torch.equal(pixels[: len(pixels) // 2], pixels[len(pixels) // 2 :])
    if image.shape == pixels[: len(pixels) // 2].shape:
        torch.testing.assert_close(pixels[: len(image)], image, **EXACT)


def test_timestamps_stand_between_the_frames_of_qwen3(model: Model) -> None:
    layout = model.vision.preprocess(slow_clip(5, 0.7)).layout
    stamps = re.findall(r"<(\d+\.\d) seconds>", layout.text)
    if model.folder.name.startswith("qwen3"):
        assert stamps == ["0.3", "1.7", "2.8"] or stamps == ["0.4", "1.8", "2.8"]  # .35 and 1.75 rounded
        assert len(layout.runs) == len(layout.mrope_deltas) == len(layout.regions) == 3
        assert layout.text.count("<|vision_start|><|video_pad|><|vision_end|>") == 3
    else:
        assert (layout.text, len(layout.runs), len(layout.regions)) == ("<|video_pad|>", 1, 3)
    assert [region.time for region in layout.regions] == pytest.approx([0.0, 1.4, 2.8])


@needs_torchvision
@pytest.mark.parametrize("settings", [{}, {"cap_pixels_per_frame": True, "max_video_tokens": 60}])
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
@pytest.mark.parametrize("size", [(320, 240), (90, 500), (20, 30), (448, 224)])
def test_clips_are_those_of_the_stock_video_processor(
    model: Model, tmp_path: Path, settings: dict[str, Any], frames: int, size: tuple[int, int]
) -> None:
    from transformers.video_utils import VideoMetadata

    folder = changed(model.folder, tmp_path, settings)
    checkpoint = resolve(str(folder))
    vision = load_family(checkpoint.model_type).load_vision_half(checkpoint, CPU)
    if frames == 1 and "qwen3" in model.folder.name:
        pytest.skip("the stock processor of Qwen3-VL refuses a clip of one frame")
    media = slow_clip(frames, 0.5, size)
    stock = AutoProcessor.from_pretrained(folder)
    video = np.stack([np.asarray(frame) for frame in media.frames])
    metadata = VideoMetadata(total_num_frames=frames, fps=2.0, frames_indices=list(range(frames)))
    ours = vision.preprocess(media)
    stock_inputs = stock(
        text=[stock.video_token],
        videos=[video],
        return_tensors="pt",
        videos_kwargs={"video_metadata": [metadata], "do_sample_frames": False, "return_metadata": True},
    )
    assert torch.equal(ours.tensors["video_grid_thw"], stock_inputs["video_grid_thw"])
    difference = (tower_pixels(ours) - stock_inputs["pixel_values_videos"]).abs()
    # Pillow and torchvision resize the same frame up to two of 255 steps apart. That is .030 here, as measured, and
    # above .02 for at most 4e-4 of a clip. Where nothing is resized, nothing may differ.
    step = 1 / 255 / min(stock.video_processor.image_std)
    resized = ours.tensors["video_grid_thw"][0, 1:].flip(0) * stock.video_processor.patch_size != torch.tensor(size)
    assert difference.max() <= (2.01 * step if resized.any() else 1e-5)
    assert (difference > 0.02).float().mean() < 1e-3
    if "second_per_grid_ts" in stock_inputs:
        assert ours.tensors["second_per_grid_ts"].tolist() == list(map(float, stock_inputs["second_per_grid_ts"]))
    ids = stock_inputs["input_ids"][0].tolist()
    visual = placeholder_ids(model.stock.config)
    runs = [len(list(group)) for is_visual, group in groupby(ids, lambda token: token in visual) if is_visual]
    assert list(ours.layout.runs) == runs
    text = stock.tokenizer.decode(ids).replace(stock.video_token, "")
    assert ours.layout.text.replace(stock.video_token, "") == text


def changed(folder: Path, to: Path, settings: dict[str, Any]) -> Path:
    """A copy of a checkpoint with other settings for video."""
    shutil.copytree(folder, to / "changed")
    name = "video_preprocessor_config.json"
    path = to / "changed" / (name if (folder / name).exists() else "preprocessor_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return to / "changed"


def test_settings_for_video_come_from_the_checkpoint(model: Model, tmp_path: Path) -> None:
    """They are in the processor's file, a file of their own, or that for images. The stock limits are the default."""
    images = model.processor.image_processor
    plain = load_clip_settings(resolve(str(model.folder)), images)
    assert plain.size["shortest_edge"] == (4096 if "qwen3" in model.folder.name else 3136)
    folder = changed(model.folder, tmp_path, {})
    nested = {"video_processor": {"min_pixels": 5000, "max_pixels": 9000, "image_mean": [0.1, 0.2, 0.3]}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    settings = load_clip_settings(resolve(str(folder)), images)
    assert (settings.size, settings.image_mean) == ({"shortest_edge": 5000, "longest_edge": 9000}, [0.1, 0.2, 0.3])
    (folder / "processor_config.json").write_text(json.dumps({"video_processor": {"merge_size": 2}}))
    settings = load_clip_settings(resolve(str(folder)), images)
    side = FRAME_SIZING[resolve(str(folder)).model_type].token_side
    assert settings.size == {"shortest_edge": 128 * side**2, "longest_edge": 768 * side**2}
    (folder / "processor_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read the video settings"):
        load_clip_settings(resolve(str(folder)), images)


OLD_NAMES = ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model."))


def test_keys_of_older_checkpoints_are_known(model: Model, tmp_path: Path) -> None:
    if model.folder.name.startswith("qwen3"):
        pytest.skip("Qwen3-VL is younger than the names of today")
    shutil.copytree(model.folder, tmp_path / "old")
    weights = load_file(model.folder / "model.safetensors")
    for new, old in OLD_NAMES:
        weights = {re.sub(new, old, name): value for name, value in weights.items()}
    assert {name.split(".")[0] for name in weights} <= {"visual", "model", "lm_head"}
    save_file(weights, tmp_path / "old" / "model.safetensors", {"format": "pt"})
    checkpoint = resolve(str(tmp_path / "old"))
    family = load_family(checkpoint.model_type)
    for half in ("vision", "language"):
        expected, loaded = getattr(model, half).model, getattr(family, f"load_{half}_half")(checkpoint, CPU).model
        for (name, a), b in zip(expected.named_parameters(), loaded.parameters(), strict=True):
            assert torch.equal(a, b) or "embed_tokens" in name or "lm_head" in name, name


def test_a_tower_that_sees_no_whole_picture_is_refused(timed: Model, tmp_path: Path) -> None:
    shutil.copytree(timed.folder, tmp_path / "windows", ignore=shutil.ignore_patterns("*.safetensors"))
    path = tmp_path / "windows" / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"]["fullatt_block_indexes"] = []
    path.write_text(json.dumps(config))
    checkpoint = resolve(str(tmp_path / "windows"))
    with pytest.raises(UnsupportedModel, match="fullatt_block_indexes"):
        load_family(checkpoint.model_type).check_supported(checkpoint)


def test_answers_do_not_depend_on_what_was_asked_before(model: Model) -> None:
    """The stock model keeps `rope_deltas` of its last prompt. They are not read, since positions are passed."""
    pixels, items = encode_mixed(model, "9")
    prompts = [model.language.embed(PROMPT, [item]) for item in items]
    first = [model.language.generate([prompt], GENERATION)[0].text for prompt in prompts]
    again = [model.language.generate([prompt], GENERATION)[0].text for prompt in reversed(prompts)]
    assert first == again[::-1]


class PadsAfterwards(Qwen2VLImageProcessorPil):
    """Adds a number after normalization, which no whole number stands for."""

    def normalize(self, image, mean, std, **kwargs):  # type: ignore[no-untyped-def]
        return super().normalize(image, mean, std, **kwargs) + 0.1


@pytest.mark.parametrize("processor_class", [Qwen2VLImageProcessorPil, PadsAfterwards])
@pytest.mark.parametrize("do_resize", [True, False])
def test_frames_become_the_patches_of_the_processor(processor_class: type, do_resize: bool) -> None:
    """Also where the processor's arithmetic cannot be taken over. A frame of a clip has the patches of an image."""
    images = processor_class(size={"shortest_edge": 28**2, "longest_edge": 40 * 28**2}, do_resize=do_resize)
    reader = FrameReader(images, read_image_settings(images), frame_size_per_frame)
    assert (reader.scale is None) == (processor_class is PadsAfterwards)
    frames = [make_image(seed, (112, 84)) for seed in range(3)]
    expected = [images(images=[frame], return_tensors="pt")["pixel_values"] for frame in frames]

    def tower_patches(count: int) -> Tensor:
        pixels, grid = reader.read(frames[:count])
        patching = reader.patching if reader.scale else None
        item = Pixels({"pixel_values": pixels}, Layout("", (), ()), reader.scale, patching)
        assert item.num_rows == int(grid.prod())
        return tower_pixels(item)

    assert torch.equal(tower_patches(1), expected[0])
    # In each patch the channels, of each channel the two frames.
    first, second, third = (patches.view(-1, 3, 2, 14 * 14)[:, :, :1] for patches in expected)
    pairs = [torch.cat([first, second], 2), torch.cat([third, third], 2)]
    assert torch.equal(tower_patches(3), torch.cat(pairs).flatten(1))


def test_frames_that_no_patches_cover_are_refused() -> None:
    images = Qwen2VLImageProcessorPil(do_resize=False)
    reader = FrameReader(images, read_image_settings(images), frame_size_per_frame)
    with pytest.raises(ValueError, match="no multiple of 28"):
        reader.read([make_image(1, (112, 85))])
