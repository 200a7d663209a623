"""LLaVA-NeXT: tiles, unpadding, newlines, saliency, joined layers, frames, and which checkpoints are refused."""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models import load_family
from prunesid_cli.models.llava_next import NEWLINE, packed_regions, tile_windows
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.shared.processor import load_frame_processor, load_video_settings
from prunesid_cli.types import CLS_NOT_READ, Segment
from tests.models.harness import CPU, Model, make_clip, make_image
from tests.models.tiny import tiny_model, write_checkpoint
from tests.models.tiny.base import tower_pixels
from tests.models.tiny.llava_next import GRID_336, GRID_384, NARROW

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = (
    (336, 336),
    (640, 480),
    (480, 640),
    (1344, 336),
    (300, 1700),
    (31, 20),
    (20, 31),
    (673, 671),
    (1, 90),
    (999, 7),
)
VARIANTS = ("llava_next", "llava_next-yi-layers", "llava_next-granite", "llava_next_video")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {name: Model(write_checkpoint(name, tmp_path_factory.mktemp(name)), tiny_model(name)) for name in VARIANTS}


def run_stock_tower(model: Model, squares: Tensor) -> tuple[Tensor, Tensor, Any]:
    """Run the stock tower.

    Args:
        model: The checkpoint.
        squares: Tiles or frames [B, 3, H, W].

    Returns:
        Joined features [B, N, C], with CLS first if there is one; attention of the deepest layer that is read
        [B, heads, N, N]; the configuration.
    """
    config = model.stock.config
    with torch.no_grad():
        output = model.stock.model.vision_tower(squares, output_hidden_states=True, output_attentions=True)
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else layers
    deepest = max(layer % len(output.hidden_states) for layer in layers)
    return torch.cat([output.hidden_states[i] for i in layers], -1), output.attentions[deepest - 1], config


def window_rows(patches: Tensor, window: Any, side: int) -> Tensor:
    """The rows of a window [M, ...] of patches [B, N, ...]."""
    tile = patches[window.tile].unflatten(0, (side, side))
    return tile[window.top :, window.left :][: window.region.rows, : window.region.columns].flatten(0, 1)


def check_segment(segment: Segment, features: Tensor, saliency: Tensor) -> None:
    assert segment.saliency is not None
    torch.testing.assert_close(segment.features, features, **CLOSE)
    torch.testing.assert_close(segment.saliency, saliency, **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tiles_are_as_the_eager_tower_sees_them(models: dict[str, Model], variant: str) -> None:
    model = models[variant]
    pixels = model.vision.preprocess(media_from_image(make_image(3, (900, 500))))
    (item,) = model.vision.encode([pixels])
    features, attention, config = run_stock_tower(model, tower_pixels(pixels))
    has_cls = config.vision_feature_select_strategy == "default"
    patches = features[:, int(has_cls) :]
    saliency = attention[:, :, 0, 1:].sum(1) if has_cls else attention.mean((1, 2))
    windows = tile_windows(model.vision.pack_patch_numbers(pixels.tensors), model.vision.side)
    assert len(item.segments) == len(windows) == len(features) > 3
    for segment, window in zip(item.segments, windows, strict=True):
        side = model.vision.side
        check_segment(segment, window_rows(patches, window, side), window_rows(saliency, window, side))
        assert (segment.cls is not None) == has_cls
        if segment.cls is not None:
            torch.testing.assert_close(segment.cls, features[window.tile, 0], **CLOSE)
            assert segment.cls_slot == CLS_NOT_READ


def test_frames_are_pooled_as_the_stock_model_does(models: dict[str, Model]) -> None:
    model = models["llava_next_video"]
    pixels = model.vision.preprocess(make_clip(5, 3))
    (item,) = model.vision.encode([pixels])
    features, attention, _ = run_stock_tower(model, tower_pixels(pixels))
    pooled = model.stock.model.vision_resampler(features[:, 1:])
    saliency = attention[:, :, 0, 1:].sum(1).view(3, 6, 2, 6, 2).sum((2, 4)).flatten(1)
    for frame, segment in enumerate(item.segments):
        check_segment(segment, pooled[frame], saliency[frame])
        assert segment.slots == tuple(range(36 * frame, 36 * (frame + 1)))
    assert [region.time for region in item.layout.regions] == [0.0, 0.5, 1.0]
    assert item.layout.runs == (108,)


def make_packing_model(side: int, patch: int, pinpoints: list[list[int]]) -> LlavaNextForConditionalGeneration:
    """A model for packing alone."""
    vision = CLIPVisionConfig(
        hidden_size=4,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=side,
        patch_size=patch,
    )
    text = LlamaConfig(vocab_size=9, hidden_size=4, intermediate_size=4, num_hidden_layers=0, num_attention_heads=1)
    config = LlavaNextConfig(vision_config=vision, text_config=text, image_grid_pinpoints=pinpoints)
    return LlavaNextForConditionalGeneration(config)


@pytest.mark.parametrize(("side", "patch", "pinpoints"), [(336, 14, GRID_336), (384, 14, GRID_384)])
@pytest.mark.parametrize("size", SIZES)
def test_every_slot_is_one_patch_of_one_tile(
    models: dict[str, Model], side: int, patch: int, pinpoints: list[list[int]], size: tuple[int, int]
) -> None:
    """Stock packing, the processor's count, our windows and our regions agree at the real numbers of patches."""
    rows, model = side // patch, make_packing_model(side, patch, pinpoints)
    processor = models["llava_next"].processor
    images = type(processor.image_processor)(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_grid_pinpoints=pinpoints
    )
    processed = images(images=[make_image(0, size)], return_tensors="pt")
    tiles = len(processed["pixel_values"][0])
    numbers = torch.arange(tiles * rows**2).view(tiles, -1, 1)
    packed = model.model.pack_image_features(
        [numbers],
        processed["image_sizes"],
        vision_feature_select_strategy="default",
        image_newline=torch.tensor([NEWLINE]),
    )[0][0].flatten()
    windows = tile_windows(packed.tolist(), rows)
    patch_of_slot = {
        slot: (window.tile * rows + window.top + i // window.region.columns) * rows
        + window.left
        + i % window.region.columns
        for window in windows
        for i, slot in enumerate(window.region.slots)
    }
    assert patch_of_slot == {slot: number for slot, number in enumerate(packed.tolist()) if number != NEWLINE}
    assert sum(window.region.rows * window.region.columns for window in windows) == len(patch_of_slot)
    regions = packed_regions(packed.tolist(), rows)
    assert sorted(slot for region in regions for slot in region.slots) == sorted(patch_of_slot)
    assert len(packed) == count_placeholders(processor, images, processed["image_sizes"], patch)


def count_placeholders(processor: Any, images: Any, sizes: Tensor, patch: int) -> int:
    """Count the placeholders that the processor writes for an image."""
    counting = type(processor)(
        images,
        processor.tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    (count,) = counting._get_num_multimodal_tokens(image_sizes=sizes.tolist())["num_image_tokens"]
    return int(count)


def test_a_single_tile_has_one_newline(models: dict[str, Model]) -> None:
    vision = models["llava_next"].vision
    tensors = {"pixel_values": torch.zeros(1, 3, 336, 336), "image_sizes": torch.tensor([[336, 336]])}
    packed = vision.pack_patch_numbers(tensors)
    assert packed == [*range(144), NEWLINE]
    assert (len(packed_regions(packed, 12)), len(tile_windows(packed, 12))) == (1, 1)


def test_only_the_base_tile_of_a_very_narrow_image_is_read(models: dict[str, Model]) -> None:
    vision = models["llava_next"].vision
    (item,) = vision.encode([vision.preprocess(media_from_image(make_image(1, NARROW)))])
    assert (len(item.segments), len(item.layout.regions)) == (1, 1)
    assert item.layout.total > len(item.segments[0].features)


def test_layers_above_what_is_read_and_heads_are_not_loaded(models: dict[str, Model]) -> None:
    for variant, layers in (("llava_next", 3), ("llava_next-yi-layers", 3), ("llava_next-granite", 4)):
        vision, language = models[variant].vision, models[variant].language
        assert len(vision.tower.layers) == layers
        for half in (vision, language):
            assert not [name for name, _ in half.model.named_parameters() if ".head." in name]


OLD_NAMES = {
    "4.40": {r"^vision_tower\.": "vision_tower.vision_model."},
    "4.52": {
        r"^vision_tower\.": "model.vision_tower.vision_model.",
        r"^language_model\.lm_head": "lm_head",
        r"^language_model\.model\.": "model.language_model.",
        r"^(image_newline|multi_modal_projector)": r"model.\1",
    },
}


@pytest.mark.parametrize("version", OLD_NAMES)
@pytest.mark.parametrize("variant", ["llava_next", "llava_next-granite", "llava_next_video"])
def test_names_of_older_checkpoints_load(models: dict[str, Model], version: str, variant: str, tmp_path: Path) -> None:
    folder = shutil.copytree(models[variant].folder, tmp_path / "old")
    weights = load_file(folder / "model.safetensors")
    for pattern, new in OLD_NAMES[version].items():
        weights = {re.sub(pattern, new, key): value for key, value in weights.items()}
    # Most checkpoints of SigLIP have no head.
    kept = {key: value for key, value in weights.items() if ".head." not in key}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    checkpoint = resolve(str(folder))
    for half in ("vision", "language"):
        loaded = getattr(load_family(checkpoint.model_type), f"load_{half}_half")(checkpoint, CPU).model
        for (name, a), (_, b) in zip(
            loaded.named_parameters(), getattr(models[variant], half).model.named_parameters(), strict=True
        ):
            assert torch.equal(a, b) or "embed_tokens" in name or "lm_head" in name, name


REFUSED = {
    "strategy 'full'": {"vision_feature_select_strategy": "full"},
    "tower of type 'vit'": {"vision_config": {"model_type": "vit"}},
    r"layers \[-2, 9\] of 4": {"vision_feature_layer": [-2, 9]},
    "layers 0 of 4": {"vision_feature_layer": 0},
    "pools frames by 'conv'": {"spatial_pool_mode": "conv"},
}


@pytest.mark.parametrize("problem", REFUSED)
def test_variants_that_cannot_be_cut_are_refused_by_name(
    models: dict[str, Model], problem: str, tmp_path: Path
) -> None:
    """The configuration is enough: there are no weights."""
    config = json.loads((models["llava_next_video"].folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | REFUSED[problem]))
    checkpoint = resolve(str(tmp_path))
    with pytest.raises(UnsupportedModel, match=problem):
        load_family(checkpoint.model_type).check_supported(checkpoint)


def test_the_stock_model_cannot_read_what_is_refused(models: dict[str, Model]) -> None:
    model = models["llava_next"]
    inputs = model.stock_inputs(model.images()[:1], "what is shown?")
    with pytest.raises(RuntimeError, match="invalid for input of size"):
        model.stock(**inputs, vision_feature_select_strategy="full")


@pytest.mark.parametrize(
    "name", ["processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"]
)
def test_settings_of_clips_come_from_the_checkpoint(models: dict[str, Model], name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(models["llava_next_video"].folder, tmp_path / "clips")
    video_settings = {
        "crop_size": {"height": 28, "width": 28},
        "size": {"shortest_edge": 30},
        "image_mean": [0.1, 0.2, 0.3],
    }
    (folder / "video_preprocessor_config.json").unlink()
    settings = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    settings |= {"video_processor": video_settings} if name == "processor_config.json" else video_settings
    (folder / name).write_text(json.dumps(settings))
    loaded = load_video_settings(resolve(str(folder)))
    assert {key: loaded[key] for key in video_settings} == video_settings
    frames = load_frame_processor(resolve(str(folder)), models["llava_next_video"].processor.image_processor)
    assert frames(images=[make_image(0, (90, 60))], return_tensors="pt")["pixel_values"].shape == (1, 3, 28, 28)


@pytest.mark.skipif(find_spec("torchvision") is None, reason="the stock video processor needs torchvision")
def test_frames_are_as_the_stock_video_processor_makes_them(models: dict[str, Model]) -> None:
    from transformers import AutoVideoProcessor

    model, media = models["llava_next_video"], make_clip(4, 3, (500, 410))
    processed = AutoVideoProcessor.from_pretrained(model.folder)(videos=[list(media.frames)], return_tensors="pt")
    frames = tower_pixels(model.vision.preprocess(media))
    assert (processed["pixel_values_videos"][0] - frames).abs().max() < 0.05
