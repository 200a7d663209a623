"""PaliGemma: saliency, prompts without a chat template, bidirectional attention, Gemma 2, windows of large rasters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prunesid_cli.errors import UnsupportedModel, UsageError
from prunesid_cli.models import load_family
from prunesid_cli.models.loading.checkpoint import resolve
from tests.models.harness import CPU, PROMPT, Model
from tests.models.tiny import tiny_model, write_checkpoint
from tests.models.tiny.base import tower_pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write_checkpoint("paligemma", tmp_path_factory.mktemp("paligemma")), tiny_model("paligemma"))


def test_saliency_is_the_eager_attention_that_a_patch_receives(model: Model) -> None:
    pixels = [model.vision.preprocess(media) for media in model.images()]
    batch = torch.cat([tower_pixels(item) for item in pixels])
    with torch.no_grad():
        attention = model.stock.model.vision_tower(pixel_values=batch, output_attentions=True).attentions[-1]
    saliency = torch.stack([item.segments[0].saliency for item in model.vision.encode(pixels)])
    torch.testing.assert_close(saliency, attention.mean((1, 2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "num_images", "written"),
    [
        (PROMPT, 1, "<image><bos>what is shown?\n"),
        ("<image>what is shown?", 1, "<image><bos>what is shown?\n"),
        (PROMPT, 2, "<image><image><bos>what is shown?\n"),
        ("first <image> and then <image> what is shown?", 2, "first <image> and then <image><bos> what is shown?\n"),
    ],
)
def test_a_prompt_is_as_the_stock_processor_writes_it(model: Model, prompt: str, num_images: int, written: str) -> None:
    media = model.images()[:num_images]
    ids = model.language.tokenize(prompt, [model.vision.layout] * num_images)
    assert model.processor.tokenizer.decode(ids) == written
    stock = model.stock_inputs(media, prompt)["input_ids"][0].tolist()
    image = model.processor.image_token_id
    assert stock == [token for i in ids.tolist() for token in [i] * (256 if i == image else 1)]


def test_a_prompt_attends_to_itself_in_both_directions(model: Model) -> None:
    """Without that, the logits differ."""
    (item,) = model.pruner("23").prune(model.pruner().encode([model.vision.preprocess(model.images()[0])]))
    embedded = model.language.embed(PROMPT, [item])
    inputs = model.language.model_inputs([embedded])
    with torch.no_grad():
        bidirectional, causal = (
            model.language.model(**inputs | {"token_type_ids": types}).logits[0, -1]
            for types in (inputs["token_type_ids"], torch.ones_like(inputs["token_type_ids"]))
        )
    torch.testing.assert_close(bidirectional, model.language.logits([embedded])[0])
    assert (bidirectional - causal).abs().max() > 1e-2


def test_scores_of_gemma_2_are_capped_whatever_kernel_is_asked_for(tmp_path: Path) -> None:
    two = Model(write_checkpoint("paligemma-two", tmp_path), tiny_model("paligemma-two"))
    assert two.language.model.model.language_model.config._attn_implementation == "eager"
    assert two.vision.tower.config._attn_implementation == "sdpa"
    (item,) = two.pruner("23").prune(two.pruner().encode([two.vision.preprocess(two.images()[0])]))
    embedded = [two.language.embed(PROMPT, [item])]
    capped = two.language.logits(embedded)
    for layer in two.language.model.model.language_model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert (capped - two.language.logits(embedded)).abs().max() > 1e-2


@pytest.mark.slow
def test_large_rasters_are_selected_from_in_windows(tmp_path: Path) -> None:
    model = Model(write_checkpoint("paligemma-large", tmp_path), tiny_model("paligemma-large"))
    (item,) = model.vision.encode([model.vision.preprocess(model.images()[0])])
    assert [len(segment.features) for segment in item.segments] == [800] * 2
    assert sorted(slot for segment in item.segments for slot in segment.slots or ()) == list(range(1600))


def test_flash_attention_is_refused(model: Model) -> None:
    checkpoint, placement = resolve(str(model.folder)), replace(CPU, attention="flash_attention_2")
    for half in ("vision", "language"):
        with pytest.raises(UsageError, match="both directions"):
            getattr(load_family("paligemma"), f"load_{half}_half")(checkpoint, placement)


def test_other_towers_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "paligemma", "vision_config": {"model_type": "clip_vision_model"}}'
    )
    with pytest.raises(UnsupportedModel, match="'clip_vision_model'"):
        load_family("paligemma").check_supported(resolve(str(tmp_path)))
