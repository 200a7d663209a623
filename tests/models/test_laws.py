"""The laws that every family obeys, through the same code that the commands run, compared with the stock model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import Tensor

from prunesid_cli.errors import MediaError, UsageError
from prunesid_cli.models import FAMILIES
from prunesid_cli.models.shared.choices import choice_sequences
from prunesid_cli.models.shared.processor import supports_clips
from prunesid_cli.models.shared.schema import check_schema
from prunesid_cli.models.shared.shared_prefix import prompt_prefix
from prunesid_cli.models.spliced.table import TYPES as SPLICED_TYPES
from prunesid_cli.pipeline.ask import ask
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection import METHODS
from prunesid_cli.selection.budget import Budget, Spread
from prunesid_cli.selection.methods.visionzip import contextual_count
from prunesid_cli.tokencache import open_cache, read_tokens
from prunesid_cli.types import CLS_NOT_READ, Generation, Prompt
from tests.conftest import Run
from tests.models.harness import (
    CLOSE,
    GENERATION,
    NESTED_CHOICES,
    PROMPT,
    Model,
    check_keeping_all,
    kept_rows,
    make_clip,
    unread_cls_rows,
)
from tests.models.tiny import TINY
from tests.models.tiny.base import TinyModel

TAGGED_PROMPT = "first <image> and then <image> what is shown?"
QUESTIONS = [PROMPT, "is there a star in it, and of which colour is that then?", "count", "what is left of the ring?"]
SCHEMAS = (
    {
        "type": "object",
        "properties": {
            "color": {"enum": ["red", "green"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "seen": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["color", "count", "seen"],
        "additionalProperties": False,
    },
    {"enum": ["a red square", "a blue star", "nothing"]},
)
EXACT_METHODS = sorted(name for name, info in METHODS.items() if not info.merges_tokens)
"""Methods whose kept tokens are rows of the stock model."""


def test_every_family_has_a_tiny_model() -> None:
    assert {name.split("-")[0] for name in TINY} == set(FAMILIES)


def test_keeping_all_is_the_stock_model(model: Model) -> None:
    for media in model.media():
        check_keeping_all(model, [media], PROMPT)


@pytest.mark.parametrize("prompt", [pytest.param(PROMPT, marks=pytest.mark.slow), TAGGED_PROMPT])
def test_keeping_all_of_two_images_is_the_stock_model(model: Model, prompt: str) -> None:
    check_keeping_all(model, model.images()[:2], prompt)


@pytest.mark.parametrize("method", EXACT_METHODS)
def test_a_pruned_prompt_is_the_stock_prompt_without_the_pruned_rows(model: Model, method: str) -> None:
    """The other rows are equal, and so are their positions."""
    for stock_prompt in model.stock_prompts:
        items = model.pruner("23", method).prune(stock_prompt.encoded)
        prompt = model.language.embed(PROMPT, items)
        stock, kept = stock_prompt.language_inputs, kept_rows(model, stock_prompt.inputs, items)
        inputs = model.language_inputs(prompt)
        is_stock_row = ~unread_cls_rows(prompt, items)
        torch.testing.assert_close(inputs["inputs_embeds"][0][is_stock_row], stock["inputs_embeds"][0, kept], **CLOSE)
        assert prompt.visual.sum() == sum(item.kept for item in items)
        if prompt.positions is not None:
            assert torch.equal(prompt.positions, stock["position_ids"][-3:, 0, kept])
        deepstack = inputs.get("deepstack_visual_embeds") or []
        for layer, stock_layer in zip(deepstack, kept_deepstack(stock, kept), strict=True):
            torch.testing.assert_close(layer, stock_layer, **CLOSE)
        with torch.no_grad():
            pruned_inputs = prune_stock_inputs(model.tiny, stock, kept, inputs["inputs_embeds"][0])
            state = model.stock_language_model(**pruned_inputs).last_hidden_state[:, -1]
            expected = model.stock.lm_head(state)[0]
        # Some models scale what their head puts out.
        torch.testing.assert_close(model.head_scores(prompt), expected, **CLOSE)


@pytest.mark.slow
def test_settings_about_repetition_see_the_prompt(model: Model) -> None:
    """As in the stock model: ids of the prompt are penalised, too. Alone, in a batch, and with a shared prefix."""
    settings = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}
    configs = [model.language.model.generation_config, model.stock_generation_config]
    plain = [vars(config).copy() for config in configs]
    try:
        for config in configs:
            config.update(**settings)
        media = model.images()[:2]
        check_keeping_all(model, media[:1], PROMPT)
        items = model.pruner().prune(model.pruner().encode([model.vision.preprocess(item) for item in media]))
        prompts = [model.language.embed(question, [item]) for item in items for question in QUESTIONS]
        answers = model.language.generate(prompts, GENERATION)
        assert answers == [model.language.generate([prompt], GENERATION)[0] for prompt in prompts]
        if model.language.can_share_prefix:
            caches = model.language.read_prefixes([prompt_prefix(prompt, len(prompt.ids) - 1) for prompt in prompts])
            assert model.language.generate(prompts, GENERATION, caches) == answers
    finally:
        for config, attributes in zip(configs, plain, strict=True):
            vars(config).update(attributes)
    assert model.language.generate(prompts, GENERATION) != answers


@pytest.mark.slow
def test_beams_are_those_of_the_stock_model(model: Model) -> None:
    """The checkpoint's own settings may ask for beams. Alone, and in a batch of prompts of several lengths."""
    configs = [model.language.model.generation_config, model.stock_generation_config]
    try:
        for config in configs:
            config.num_beams = 3
        media = model.images()[:2]
        check_keeping_all(model, media[:1], PROMPT, allow_empty=True)
        # In transformers, models of GLM interleave the images of a prompt when they repeat them for each beam.
        if "_expand_multimodal_outputs" not in vars(type(model.stock)):
            check_keeping_all(model, media, PROMPT, allow_empty=True)
        items = model.pruner("23").prune(model.pruner().encode([model.vision.preprocess(item) for item in media]))
        prompts = [model.language.embed(question, [item]) for item in items for question in QUESTIONS]
        answers = model.language.generate(prompts, GENERATION)
        assert answers == [model.language.generate([prompt], GENERATION)[0] for prompt in prompts]
    finally:
        for config in configs:
            config.num_beams = 1


def prune_stock_inputs(tiny: TinyModel, stock: dict[str, Any], kept: Tensor, embeds: Tensor) -> dict[str, Any]:
    """The inputs of the stock language model without pruned rows; `embeds` may have rows of unread CLS tokens, too."""
    if tiny.prune_inputs:
        return tiny.prune_inputs(stock, kept)
    inputs: dict[str, Any] = {"inputs_embeds": embeds[None], "attention_mask": None, "use_cache": False}
    positions = stock.get("position_ids")
    if positions is not None and positions.ndim == 3:
        inputs["position_ids"] = positions[:, :, kept]
    if stock.get("visual_pos_masks") is not None:
        inputs["visual_pos_masks"] = stock["visual_pos_masks"][:, kept]
        inputs["deepstack_visual_embeds"] = kept_deepstack(stock, kept)
    return inputs


def kept_deepstack(stock: dict[str, Any], kept: Tensor) -> list[Tensor]:
    """What the stock model adds to its visual tokens in each of the first layers, for kept rows in their order."""
    if stock.get("visual_pos_masks") is None:
        return []
    visual = stock["visual_pos_masks"][0]
    numbers = visual.cumsum(0) - 1
    return [layer[numbers[kept[visual[kept]]]] for layer in stock["deepstack_visual_embeds"]]


def test_merged_tokens_take_the_slots_of_kept_tokens(model: Model) -> None:
    """And so their positions; all tokens that are not merged are rows of the stock model."""
    merged = 0
    for media in model.media():
        encoded = model.pruner().encode([model.vision.preprocess(media)])
        (item,), (unpruned,) = model.pruner("70%", "visionzip").prune(encoded), model.pruner().prune(encoded)
        rows = [row for row, slot in enumerate(item.slots) if slot in unpruned.slots]
        original = unpruned.tokens[[unpruned.slots.index(item.slots[row]) for row in rows]]
        changed = int((item.tokens[rows] != original).any(-1).sum())
        assert changed <= contextual_count(len(item.slots))
        merged += changed
        prompt = model.language.embed(PROMPT, [item])
        if prompt.positions is not None:
            inputs = model.stock_inputs([media], PROMPT)
            kept = kept_rows(model, inputs, [item])
            assert torch.equal(prompt.positions, model.stock_language_inputs(inputs)["position_ids"][-3:, 0, kept])
    assert merged


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_keeps_as_many_tokens_as_asked_each_once(model: Model, method: str) -> None:
    for item in model.encoded_batch:
        total = item.layout.total
        known_slots = {slot for region in item.layout.regions for slot in region.slots}
        known_slots |= {segment.cls_slot for segment in item.segments}
        capacity = sum(segment.capacity for segment in item.segments)
        for count in (1, 2, 7, 40, total - 1, total, total + 9):
            for spread in (Spread.WITHIN_ITEM, Spread.NONE):
                (kept,) = Pruner(model.vision, Budget(count, spread=spread), method, ()).prune([item])
                assert kept.kept == (total if count >= total else min(count, capacity))
                assert len(kept.slots) == len(kept.tokens)
                slots = [slot for slot in kept.slots if slot != CLS_NOT_READ]
                assert len(set(slots)) == len(slots)
                assert set(slots) <= known_slots
                assert len(item.segments) == 1 or slots == sorted(slots)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_batch_gives_the_results_of_single_items(model: Model, method: str) -> None:
    """Items of all sizes in one batch; prompts about one, two and three of them in one batch."""
    pruner = model.pruner("29", method)
    counts = [29 + 5 * number for number in range(len(model.encoded))]
    batch = pruner.keep(model.encoded_batch, counts)
    single = [pruner.keep([item], [count])[0] for item, count in zip(model.encoded, counts, strict=True)]
    for a, b in zip(batch, single, strict=True):
        assert (a.slots, a.layout, a.is_unpruned) == (b.slots, b.layout, b.is_unpruned)
        torch.testing.assert_close(a.tokens, b.tokens, **CLOSE)
    images = [item for item in single if not item.layout.is_clip]
    groups = [single[:1], images[1:3], images[:3], single[-1:]]
    prompts = [model.language.embed(PROMPT, group) for group in groups]
    answers = [answer.text for answer in model.language.generate(prompts, GENERATION)]
    assert answers == [model.language.generate([prompt], GENERATION)[0].text for prompt in prompts]
    single_logits = torch.cat([model.language.logits([prompt]) for prompt in prompts])
    torch.testing.assert_close(model.language.logits(prompts), single_logits, **CLOSE)


@pytest.mark.parametrize("keep", [pytest.param("all", marks=pytest.mark.slow), "23"])
def test_a_shared_prefix_changes_no_answer(model: Model, keep: str) -> None:
    """Prompts of all lengths about items of all sizes, in one batch."""
    config = model.language.model.config
    kinds_of_layers = {*(getattr(config.get_text_config(), "layer_types", None) or ["full_attention"])}
    has_other_state = not kinds_of_layers <= {"full_attention", "sliding_attention"}
    is_shared_type = SPLICED_TYPES[config.model_type].shares_prefix if config.model_type in SPLICED_TYPES else True
    assert model.language.can_share_prefix == (
        config.model_type != "paligemma" and is_shared_type and not has_other_state
    )
    pruner = model.pruner(keep)
    items = pruner.prune(pruner.encode([model.vision.preprocess(media) for media in model.media()]))
    batch, prefixes = [], []
    for item in items:
        prompts = [model.language.embed(question, [item]) for question in QUESTIONS]
        length = shared_prefix_length(prompts)
        assert prompts[0].visual[:length].sum() == item.kept
        prefixes.append(prompt_prefix(prompts[0], length))
        batch += prompts
    if not model.language.can_share_prefix:
        return
    caches = [cache for cache in model.language.read_prefixes(prefixes) for _ in QUESTIONS]
    torch.testing.assert_close(model.language.logits(batch, caches), model.language.logits(batch), **CLOSE)
    assert model.language.generate(batch, GENERATION, caches) == model.language.generate(batch, GENERATION)


def shared_prefix_length(prompts: Sequence[Prompt]) -> int:
    """Number of tokens that all prompts have in common at their start, fewer than any prompt has."""
    max_length = min(len(prompt.ids) for prompt in prompts) - 1
    rows = torch.stack([prompt.ids[:max_length] for prompt in prompts])
    return int((rows == rows[0]).all(0).long().cumprod(0).sum())


def save_images(model: Model, folder: Path) -> None:
    for number, media in enumerate(model.images()):
        media.image.save(folder / f"{number}.png")


@pytest.mark.parametrize("choices", [("red", "a star", "two"), NESTED_CHOICES])
def test_choices_are_scored_as_by_the_stock_model(model: Model, choices: tuple[str, ...]) -> None:
    """Whole sequences of the stock model, one at a time. In the second list one choice begins with another one."""
    media = [model.media()[-1]]
    items = model.pruner().prune(model.pruner().encode([model.vision.preprocess(item) for item in media]))
    inputs, sequences = model.stock_inputs(media, PROMPT), choice_sequences(model.language, choices)
    scores = [torch.stack([stock_score(model, inputs, ids) for ids in variants]).logsumexp(0) for variants in sequences]
    expected = torch.stack(scores).softmax(0)
    prompts = [model.language.embed(text, items) for text in (PROMPT, f"{PROMPT} {PROMPT}")]
    answer, other = model.language.generate(prompts, Generation(choices=choices))
    found = torch.tensor(list(answer.probabilities.values()))
    torch.testing.assert_close(found, expected, **CLOSE)
    assert answer.text == choices[int(expected.argmax())]
    (alone,) = model.language.generate(prompts[1:], Generation(choices=choices))
    torch.testing.assert_close(list(other.probabilities.values()), list(alone.probabilities.values()), **CLOSE)


def test_answers_by_a_schema_are_valid(model: Model) -> None:
    """Each of a batch, and the same as alone. Of three texts, the one is chosen that the model decodes greedily."""
    items = model.pruner().prune(model.encoded[:1])
    prompts = [model.language.embed(text, items) for text in (PROMPT, f"{PROMPT} {PROMPT}")]
    for schema in SCHEMAS:
        generation = Generation(max_new_tokens=200, schema=check_schema(json.dumps(schema)))
        together = model.language.generate(prompts, generation)
        for prompt, answer in zip(prompts, together, strict=True):
            jsonschema.validate(answer.record["answer"], schema)
            assert answer.is_json
            (alone,) = model.language.generate([prompt], generation)
            assert (alone.text, alone.new_tokens) == (answer.text, answer.new_tokens)
    cut = model.language.generate(prompts, replace(generation, max_new_tokens=2))
    assert not any(answer.is_json for answer in cut)


def test_a_system_prompt_is_read_or_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before the prompt, and changes nothing else."""
    layout = model.encoded[0].layout
    without = model.language.tokenize(PROMPT, [layout])
    monkeypatch.setattr(model.language, "system", "what is left of the ring?")
    try:
        ids = model.language.tokenize(PROMPT, [layout])
    except UsageError as error:
        assert "--system" in error.hint
        return
    text = model.language.tokenizer.decode(ids)
    squeezed = text.replace(" ", "")
    assert squeezed.index("whatisleftofthering?") < squeezed.index(PROMPT.replace(" ", ""))
    places = [sum(token in model.language.placeholder_ids for token in some.tolist()) for some in (ids, without)]
    assert places[0] == places[1] == len(layout.runs)


def stock_score(model: Model, inputs: dict[str, Any], ids: Sequence[int]) -> Tensor:
    """How probable the stock model finds an answer: the sum of the log-probabilities of its tokens."""
    length, extended = inputs["input_ids"].shape[1], dict(inputs)
    if not model.language.is_causal:  # a prompt with the answer in it would be read in both directions
        options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        options |= {"prefix_allowed_tokens_fn": lambda row, seen: [ids[len(seen) - length]]}
        steps = model.stock.generate(**inputs, max_new_tokens=len(ids), **options).logits
        scores = [step[0].float().log_softmax(-1)[token] for step, token in zip(steps, ids, strict=True)]
        return torch.stack(scores).sum()
    for name, tensor in inputs.items():
        if tensor.shape == inputs["input_ids"].shape:
            new = torch.tensor([ids]) if name == "input_ids" else torch.full((1, len(ids)), int("attention" in name))
            extended[name] = torch.cat([tensor, new.to(tensor)], 1)
    with torch.no_grad():
        log_probs = model.stock(**extended).logits[0, length - 1 : -1].float().log_softmax(-1)
    return log_probs.gather(1, torch.tensor(ids)[:, None]).sum()


def test_prompts_of_a_list_get_the_answers_of_single_prompts(model: Model, run: Run, tmp_path: Path) -> None:
    """Whatever the batch size, and whether or not their prefix is shared."""
    save_images(model, tmp_path)
    assert run("compress", tmp_path, "-m", model.folder, "-k", "all", "--out", tmp_path / "cache").code == 0
    texts = [*QUESTIONS, "what is <image> then?"]
    (tmp_path / "prompts").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    expected = []
    for shard, item in open_cache(tmp_path / "cache").items():
        (tokens,) = read_tokens(shard, [item])
        for text in texts:
            (answer,) = model.language.generate([model.language.embed(text, [tokens])], GENERATION)
            expected.append(answer.text)
    command = ("answer", tmp_path / "cache", "--max-new-tokens", GENERATION.max_new_tokens)
    for size in (3, 8):
        ran = run(*command, "--prompts", tmp_path / "prompts", "--batch-size", size)
        assert (ran.code, [record["answer"] for record in ran.records]) == (0, expected), size


def test_a_clip_is_read_as_a_whole_or_refused(model: Model) -> None:
    """A clip is never read as its first frame only."""
    if supports_clips(model.vision) and not getattr(model.vision, "clips_need", ""):
        for frames in (1, 3):
            assert model.pruner().preprocess(make_clip(1, frames)).layout.is_clip
        return
    assert not model.tiny.clip_inputs or model.vision.clips_need
    with pytest.raises(MediaError, match="this model reads (no clips|clips only with)") as caught:
        ask(model.pruner("29"), model.language, [make_clip(1, 3)], PROMPT, GENERATION)
    assert caught.value.hint


def test_asking_is_compressing_then_answering(model: Model, run: Run, tmp_path: Path) -> None:
    save_images(model, tmp_path)
    common = ("-m", model.folder, "-k", "23")
    assert run("compress", tmp_path, *common, "--out", tmp_path / "cache").code == 0
    answers = run("answer", tmp_path / "cache", PROMPT, "--max-new-tokens", 8).records
    assert len(answers) == len(model.tiny.sizes)
    for record in answers:
        asked = run("ask", record["source"], PROMPT, *common, "--max-new-tokens", 8, "--json").records[0]
        for field in ("answer", "kept", "tokens"):
            assert asked[field] == record[field]
