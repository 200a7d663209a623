"""The laws that every family keeps, through the same code that the commands run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from prunesid_cli import pipeline
from prunesid_cli.errors import ModelError
from prunesid_cli.families import FAMILIES, load_family
from prunesid_cli.families.checkpoint import resolve
from prunesid_cli.families.loading import load_config, place
from prunesid_cli.media import load_image
from prunesid_cli.pruner import Pruner
from prunesid_cli.selection import METHODS
from prunesid_cli.selection.budget import Budget
from prunesid_cli.types import SUMMARY, Generation, Placement
from tests.families.tiny import TINY

PROMPT = "what is shown?"
HOW = Generation(max_new_tokens=12)
CPU = Placement(torch.device("cpu"), torch.float32, "sdpa")


def halves(folder: Path, keep: str = "all", method: str = "prunesid", dynamic: bool = False) -> tuple[Pruner, Any]:
    found = resolve(str(folder))
    family = load_family(found.model_type)
    pruner = Pruner(family.vision(found, CPU), Budget.parse(keep, dynamic), method, ())
    return pruner, family.language(found, CPU)


class Stock:
    """The whole model as transformers runs it, eager."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
        self.processor = AutoProcessor.from_pretrained(folder)

    def inputs(self, images: list[Image.Image], prompt: str) -> Any:
        content = [{"type": "image"} for _ in images] + [{"type": "text", "text": prompt}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self.processor(images=images, text=text, return_tensors="pt")

    def answer(self, images: list[Image.Image], prompt: str) -> str:
        inputs = self.inputs(images, prompt)
        said = self.model.generate(**inputs, max_new_tokens=HOW.max_new_tokens, do_sample=False)
        return self.processor.tokenizer.decode(
            said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        ).strip()


def test_every_family_has_a_tiny_model() -> None:
    assert {name.split("-")[0] for name in TINY} == set(FAMILIES)


@pytest.mark.parametrize("count", [1, 2])
def test_keeping_all_is_the_stock_model(checkpoint: Path, pictures: list[Path], count: int) -> None:
    media = [load_image(path) for path in pictures[:count]]
    pruner, language = halves(checkpoint)
    answer, items = pipeline.ask(pruner, language, media, PROMPT, HOW)
    stock = Stock(checkpoint)
    images = [one.image for one in media]
    assert answer.text == stock.answer(images, PROMPT) != ""
    with torch.no_grad():
        expected = stock.model(**stock.inputs(images, PROMPT)).logits[0, -1]
        embeds = language.embed(PROMPT, items)
        logits = language.decoder.model(inputs_embeds=embeds[None]).logits[0, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    assert embeds.shape[0] == stock.inputs(images, PROMPT)["input_ids"].shape[1] == answer.prompt_tokens


@pytest.mark.parametrize("method", sorted(METHODS))
def test_pruned_is_the_stock_model_with_tokens_taken_out(checkpoint: Path, pictures: list[Path], method: str) -> None:
    """The kept rows of the stock model's own hidden states, spliced into its own embeddings by hand."""
    media = load_image(pictures[0])
    pruner, language = halves(checkpoint, "37", method)
    items = pruner.keep(pruner.encode([pruner.vision.preprocess(media.image)]), [37])
    stock = Stock(checkpoint)
    inputs = stock.inputs([media.image], PROMPT)
    with torch.no_grad():
        layer = stock.model.config.vision_feature_layer
        states = stock.model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[layer][
            0
        ]
        rows = states[torch.tensor(items[0].indices) + 1]
        torch.testing.assert_close(items[0].tokens, rows, atol=1e-4, rtol=0)
        words = stock.model.get_input_embeddings()(inputs["input_ids"][0])
        slots = (inputs["input_ids"][0] == stock.processor.image_token_id).nonzero().flatten()
        visual = stock.model.model.multi_modal_projector(rows)
        embeds = torch.cat([words[: slots[0]], visual, words[slots[-1] + 1 :]])
        expected = stock.model(inputs_embeds=embeds[None]).logits[0, -1]
        logits = language.decoder.model(inputs_embeds=language.embed(PROMPT, items)[None]).logits[0, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_saliency_is_the_attention_of_cls(checkpoint: Path, pictures: list[Path]) -> None:
    media = load_image(pictures[1])
    pruner, _ = halves(checkpoint)
    encoded = pruner.encode([pruner.vision.preprocess(media.image)])
    stock = Stock(checkpoint)
    with torch.no_grad():
        pixels = stock.inputs([media.image], PROMPT)["pixel_values"]
        layer = stock.model.config.vision_feature_layer
        attention = stock.model.model.vision_tower(pixels, output_attentions=True).attentions[layer]
    assert encoded.saliency is not None
    torch.testing.assert_close(encoded.saliency, attention[:, :, 0, 1:].sum(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("size", [3, 8])
def test_batch_is_singles(checkpoint: Path, pictures: list[Path], method: str, size: int) -> None:
    pruner, language = halves(checkpoint, "33", method)
    pixels = [pruner.vision.preprocess(load_image(path).image) for path in pictures[:size]]
    counts = [33 + 5 * i for i in range(size)]
    together = pruner.keep(pruner.encode(pixels), counts)
    alone = [pruner.keep(pruner.encode([one]), [count])[0] for one, count in zip(pixels, counts, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert a.indices == b.indices
        torch.testing.assert_close(a.tokens, b.tokens, atol=1e-4, rtol=0)
    prompts = [language.embed(PROMPT, [item]) for item in alone]
    batch = [answer.text for answer in language.generate(prompts, HOW)]
    assert batch == [language.generate([prompt], HOW)[0].text for prompt in prompts]


def test_cls_is_kept_first_and_counted(checkpoint: Path, pictures: list[Path]) -> None:
    pruner, _ = halves(checkpoint, "20")
    encoded = pruner.encode([pruner.vision.preprocess(load_image(pictures[0]).image)])
    (item,) = pruner.keep(encoded, [20])
    assert len(item.indices) == len(item.tokens) == 20
    assert item.indices[0] == SUMMARY
    assert list(item.indices[1:]) == sorted(set(item.indices[1:]))


def test_halves_hold_no_more_than_their_own(checkpoint: Path) -> None:
    pruner, language = halves(checkpoint)
    stock = AutoModelForImageTextToText.from_pretrained(checkpoint)
    tower = {name for name, _ in stock.model.vision_tower.named_parameters()}
    held = dict(pruner.vision.tower.named_parameters())
    assert set(held) <= tower
    assert len(held) < len(tower) or stock.config.vision_feature_layer == -1
    assert not [name for name, _ in language.decoder.model.model.vision_tower.named_parameters() if "layers" in name]


def test_missing_weights_are_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = load_file(broken / "model.safetensors")
    for part, half in (("multi_modal_projector.linear_1.weight", "language"), ("layers.0.self_attn.q_proj", "vision")):
        name = next(key for key in weights if part in key and (half == "language" or "vision_tower" in key))
        save_file({k: v for k, v in weights.items() if k != name}, broken / "model.safetensors", {"format": "pt"})
        found = resolve(str(broken))
        with pytest.raises(ModelError, match=part.replace(".", r"\.")):
            getattr(load_family(found.model_type), half)(found, CPU)


def test_auto_placement_on_a_cpu_is_exact(checkpoint: Path) -> None:
    assert place("cpu", "auto", "auto", load_config(resolve(str(checkpoint)))) == CPU
