"""Idefics3 and SmolVLM: order of the shuffle, saliency, tiles, frames, and the package num2words."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from transformers.utils import is_num2words_available

from prunesid_cli.errors import MediaError, ModelError
from prunesid_cli.inputs.image import media_from_image
from prunesid_cli.models.shared import registered_attention as saliency
from prunesid_cli.models.spliced import processor as spliced_processor
from prunesid_cli.types import Layout, Region
from tests.models.harness import PROMPT, Model, make_clip, make_image
from tests.models.tiny import tiny_model, write_checkpoint
from tests.models.tiny.base import tower_pixels


def make_model(variant: str, factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint(variant, factory.mktemp(variant)), tiny_model(variant))


@pytest.fixture(scope="module", params=["idefics3", "idefics3-long", "idefics3-smolvlm", "smolvlm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model("idefics3", tmp_path_factory)


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model("smolvlm", tmp_path_factory)


def test_a_token_is_a_square_of_patches(model: Model) -> None:
    """The stock model's shuffle is applied to the numbers of the patches."""
    config, connector = model.stock.config, model.vision.model.model.connector
    side, scale = config.vision_config.image_size // config.vision_config.patch_size, config.scale_factor
    squares = connector.pixel_shuffle(torch.arange(side**2).view(1, -1, 1), scale)[0]
    for token, square in enumerate(squares.tolist()):
        row, column = divmod(token, side // scale)
        inside = range(scale)
        assert sorted(square) == [side * (scale * row + i) + scale * column + j for i in inside for j in inside]


@pytest.mark.parametrize("max_weights", [1, saliency.MAX_ATTENTION_WEIGHTS])
def test_saliency_is_the_attention_that_the_patches_receive(
    model: Model, max_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saliency, "MAX_ATTENTION_WEIGHTS", max_weights)
    pixels = model.vision.preprocess(media_from_image(make_image(3, (500, 200))))
    (item,) = model.vision.encode([pixels])
    config, values = model.stock.config, tower_pixels(pixels)
    with torch.no_grad():
        received = model.stock.model.vision_model(values, output_attentions=True).attentions[-1].mean((1, 2))
        stock = model.stock.get_image_features(values[None], return_dict=True).pooler_output
    side = config.vision_config.image_size // config.vision_config.patch_size
    scale = config.scale_factor
    tokens = received.view(-1, side // scale, scale, side // scale, scale).sum((2, 4)).flatten(1)
    assert_close(torch.stack([segment.saliency for segment in item.segments]), tokens, atol=1e-5, rtol=0)
    # A list of images or one tensor of their tiles, depending on the version of transformers.
    features = torch.cat([part.reshape(-1, part.shape[-1]) for part in stock])
    assert_close(torch.cat([segment.features for segment in item.segments]), features, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("variant", "size", "grid"),
    [
        ("idefics3", (364, 364), (2, 2)),
        ("idefics3", (90, 400), (2, 1)),
        ("idefics3-long", (1000, 250), (1, 4)),
        ("idefics3-long", (800, 700), (4, 4)),
        ("idefics3-whole", (500, 200), (1, 1)),
    ],
)
def test_tiles_are_where_the_processor_cut(
    variant: str, size: tuple[int, int], grid: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    layout = make_model(variant, tmp_path_factory).vision.preprocess(media_from_image(make_image(0, size))).layout
    rows, columns = grid
    places = [(row, column) for row in range(rows) for column in range(columns)]
    boxes = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r, c in places]
    boxes += [(0, 0, 1, 1)] if len(boxes) > 1 else []
    assert layout.regions == tuple(Region(169 * i, 13, 13, 13, box) for i, box in enumerate(boxes))
    assert layout.runs == (169,) * len(boxes)
    around = "<fake_token_around_image>"
    ends = ["\n" if column == columns - 1 else "" for _, column in places]
    tags = [f"{around}<row_{r + 1}_col_{c + 1}><image>{end}" for (r, c), end in zip(places, ends, strict=True)]
    before = "".join(tags) + "\n" if len(boxes) > 1 else ""
    assert layout.text == f"{before}{around}<global-img><image>{around}"


def test_a_tile_shows_its_box(plain: Model) -> None:
    """If an image is white in a single tile, that tile is bright and no other, apart from the whole image."""
    image = make_image(0, (728, 728)).point(lambda value: 0)
    image.paste((255, 255, 255), (0, 364, 364, 728))
    pixels = plain.vision.preprocess(media_from_image(image))
    bright = [i for i, tile in enumerate(tower_pixels(pixels)) if tile.mean() > 0.9]
    assert [pixels.layout.regions[i].box for i in bright] == [(0.0, 0.5, 0.5, 1.0)]


def test_clips_are_for_smolvlm(plain: Model) -> None:
    with pytest.raises(MediaError, match=r"film\.mp4: this model reads no clips"):
        plain.pruner().check_clip("film.mp4")


@pytest.mark.skipif(not is_num2words_available(), reason="SmolVLM writes about clips with num2words")
def test_a_clip_is_written_frame_by_frame(smolvlm: Model) -> None:
    pixels = smolvlm.vision.preprocess(make_clip(1, 3))
    frame_text = "<fake_token_around_image><global-img><image><fake_token_around_image>"
    frames = "".join(f"\nFrame from 00:0{second}:{frame_text}" for second in (0, 0, 1))
    intro = "You are provided the following series of three frames from a 0:00:01 [H:MM:SS] video.\n"
    assert pixels.layout.text == f"{intro}{frames}\n\n"
    assert pixels.layout.runs == (64,) * 3
    assert [region.time for region in pixels.layout.regions] == [0.0, 0.5, 1.0]
    assert tower_pixels(pixels).shape == (3, 3, 512, 512)


@pytest.mark.skipif(not is_num2words_available(), reason="SmolVLM writes about clips with num2words")
def test_a_clip_is_processed_as_by_the_video_processor(smolvlm: Model) -> None:
    pytest.importorskip("torchvision")
    from transformers import AutoProcessor
    from transformers.video_utils import VideoMetadata

    media = make_clip(1, 3)
    stock = AutoProcessor.from_pretrained(smolvlm.folder)
    metadata = VideoMetadata(total_num_frames=3, fps=2.0, duration=1.0, frames_indices=[0, 1, 2])
    processed = stock(
        text=["<video>"],
        videos=[list(media.frames)],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    pixels = smolvlm.vision.preprocess(media)
    text = stock.tokenizer.decode(processed["input_ids"][0]).replace("<image>" * 64, "<image>")
    assert text == pixels.layout.text
    assert_close(tower_pixels(pixels), processed["pixel_values"][0], atol=0.05, rtol=0)


def test_images_need_no_num2words(smolvlm: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, images are encoded and prompted in the same way. Clips are refused, with what to install."""
    media = media_from_image(make_image(0, (500, 200)))
    (item,) = smolvlm.pruner("23").prune(smolvlm.vision.encode([smolvlm.vision.preprocess(media)]))
    ids = smolvlm.language.tokenize(PROMPT, [item.layout])
    monkeypatch.setattr(spliced_processor, "find_spec", lambda name: None)
    without = Model(smolvlm.folder, smolvlm.tiny)
    pixels = without.vision.preprocess(media)
    assert pixels.layout == item.layout
    assert torch.equal(without.language.tokenize(PROMPT, [item.layout]), ids)
    with pytest.raises(
        MediaError, match=r"film\.mp4: this model reads clips only with the package num2words"
    ) as refused:
        without.pruner().check_clip("film.mp4")
    assert refused.value.hint == "pip install num2words"
    frame = Layout("<image>", (64,), (Region(0, 8, 8, 8, time=0.0),))
    with pytest.raises(ModelError, match="prompts about clips need the package num2words"):
        without.language.tokenize(PROMPT, [frame])
