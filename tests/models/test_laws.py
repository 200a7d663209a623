"""The laws that every family keeps, through the same code that the commands run, against the stock model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from prunesid_cli.errors import MediaError, ModelError
from prunesid_cli.inputs.image import Media, media_from_frames, media_from_image
from prunesid_cli.models import FAMILIES, load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.loading.placement import choose_placement
from prunesid_cli.models.loading.weights import load_config
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.processor import placeholder_ids, supports_clips
from prunesid_cli.models.shared.shared_prefix import prompt_prefix
from prunesid_cli.pipeline import compress as pipeline
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection import METHODS
from prunesid_cli.selection.budget import Budget, Spread
from prunesid_cli.selection.methods.visionzip import contextual_count
from prunesid_cli.types import CLS_NOT_READ, Generation, Placement, Prompt, TokenSet
from tests.conftest import Run
from tests.models.tiny import TINY, tiny, write
from tests.models.tiny.base import Tiny

PROMPT = "what is shown?"
BETWEEN = "first <image> and then <image> what is shown?"
GENERATION = Generation(max_new_tokens=8)
CPU = Placement(torch.device("cpu"), torch.float32, "sdpa")
CLOSE = {"atol": 1e-4, "rtol": 0.0}
MERGING = {"visionzip"}
"""Methods of which not every row is a row of the stock model."""


def painting(seed: int, size: tuple[int, int]) -> Image.Image:
    """A picture with something in every corner: bars and a ramp, another for each seed."""
    rng, (width, height) = np.random.default_rng(seed), size
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def clip(seed: int, frames: int = 6, size: tuple[int, int] = (320, 240)) -> Media:
    pictures = tuple(painting(100 * seed + i, size) for i in range(frames))
    return media_from_frames(pictures, tuple(i / 2 for i in range(frames)))


@dataclass(frozen=True)
class Model:
    """A tiny checkpoint, its halves as we load them, and the whole as transformers does, eager."""

    folder: Path
    tiny: Tiny
    placement: Placement = CPU

    @cached_property
    def vision(self) -> Any:
        found = resolve(str(self.folder))
        return load_family(found.model_type).load_vision_half(found, self.placement)

    @cached_property
    def language(self) -> BaseLanguageHalf:
        found = resolve(str(self.folder))
        half = load_family(found.model_type).load_language_half(found, self.placement)
        assert isinstance(half, BaseLanguageHalf)
        return half

    @cached_property
    def stock(self) -> Any:
        if self.tiny.stock:
            return self.tiny.stock(self.folder)
        return AutoModelForImageTextToText.from_pretrained(self.folder, attn_implementation="eager").eval()

    @property
    def text(self) -> Any:
        """The stock language model, by either name."""
        return getattr(self.stock.model, "language_model", None) or self.stock.model.text_model

    @property
    def processor(self) -> Any:
        return self.stock.processor if self.tiny.stock else self.language.processor

    def pruner(self, keep: str = "all", method: str = "prunesid", **options: bool) -> Pruner:
        return Pruner(self.vision, Budget.parse(keep, **options), method, ())

    def pictures(self) -> list[Media]:
        return [media_from_image(painting(i, size)) for i, size in enumerate(self.tiny.sizes)]

    def media(self) -> list[Media]:
        return self.pictures() + ([clip(1), clip(2, 3)] if self.tiny.clip else [])

    def stock_inputs(self, media: Sequence[Media], prompt: str) -> dict[str, Any]:
        """What the stock model takes: by its processor for pictures; for a clip, whose processor needs torchvision, the
        pixels are ours, and so is the text."""
        if media[0].is_clip:
            assert self.tiny.clip
            (pixels,) = [self.vision.preprocess(one) for one in media]
            ids = expanded(self.language, prompt, pixels.layout)[None]
            takes_kinds = "mm_token_type_ids" in signature(self.stock.forward).parameters
            kinds = self.processor.create_mm_token_type_ids(ids.tolist()) if takes_kinds else ()
            more = {"mm_token_type_ids": torch.tensor(kinds)} if takes_kinds else {}
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **more, **self.tiny.clip(pixels)}
        words = re.split("<image>", prompt) if "<image>" in prompt else ["", *[""] * (len(media) - 1), prompt]
        content: list[dict[str, str]] = []
        for text, more in zip(words, [*[True] * len(media), False], strict=True):
            content += [{"type": "text", "text": text}] if text else []
            content += [{"type": "image"}] if more else []
        text = self.language.render_chat([{"role": "user", "content": content}])
        begins = self.processor.tokenizer.bos_token and text.startswith(self.processor.tokenizer.bos_token)
        images = [[one.image for one in media]]  # of one prompt, as the processor's own chat template nests them
        generation = {"return_tensors": "pt", "add_special_tokens": not begins, **self.tiny.options}
        return dict(self.processor(images=images, text=[text], **generation))

    def says(self, inputs: dict[str, Any]) -> str:
        said = self.stock.generate(**inputs, max_new_tokens=GENERATION.max_new_tokens, do_sample=False)
        new = said[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(new, skip_special_tokens=True)).strip()

    def reads(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the stock model hands to its language model."""
        seen: dict[str, Any] = {}
        inner = self.text
        hook = inner.register_forward_pre_hook(lambda module, args, given: seen.update(given), with_kwargs=True)
        with torch.no_grad():
            self.stock(**inputs)
        hook.remove()
        return seen


def expanded(language: BaseLanguageHalf, prompt: str, layout: Any) -> Tensor:
    """The ids of a prompt about one item with nothing pruned."""
    ids, runs = language.tokenize(prompt, [layout]).tolist(), iter(layout.runs)
    return torch.tensor([one for i in ids for one in [i] * (next(runs) if i in language.placeholder_ids else 1)])


# Of each family one variant at all times, the others where slow tests run.
VARIANTS = [pytest.param(name, marks=[pytest.mark.slow] if "-" in name else []) for name in sorted(TINY)]


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return Model(write(request.param, tmp_path_factory.mktemp(request.param)), tiny(request.param))


def test_every_family_has_a_tiny_model() -> None:
    assert {name.split("-")[0] for name in TINY} == set(FAMILIES)


def keep_all(model: Model, media: list[Media], prompt: str) -> None:
    answer, items = pipeline.ask(model.pruner(), model.language, media, prompt, GENERATION)
    inputs = model.stock_inputs(media, prompt)
    assert [len(item.layout.regions) > 0 and item.is_unpruned for item in items] == [True] * len(items)
    asked = model.language.embed(prompt, items)
    assert len(asked.embeds) == inputs["input_ids"].shape[1] == answer.prompt_tokens
    with torch.no_grad():
        expected = model.stock(**inputs).logits[0, -1]
    torch.testing.assert_close(model.language.logits([asked])[0], expected, **CLOSE)
    assert answer.text == model.says(inputs) != ""


def test_keeping_all_is_the_stock_model(model: Model) -> None:
    for one in model.media():
        keep_all(model, [one], PROMPT)


@pytest.mark.parametrize("prompt", [PROMPT, BETWEEN])
def test_keeping_all_of_two_pictures_is_the_stock_model(model: Model, prompt: str) -> None:
    keep_all(model, model.pictures()[:2], prompt)


def rows_kept(model: Model, inputs: dict[str, Any], items: Sequence[TokenSet]) -> Tensor:
    """Which rows of the stock prompt are left, in the order of the items' rows."""
    is_slot = torch.isin(inputs["input_ids"][0], torch.tensor(sorted(placeholder_ids(model.stock.config)))).tolist()
    spots = iter([at for at, slot in enumerate(is_slot) if slot])
    runs = [(item, start, count) for item in items for start, count in zip(starts(item), item.layout.runs, strict=True)]
    at = {}
    for item, start, count in runs:
        place = [next(spots) for _ in range(count)]
        at[place[0]] = [place[slot - start] for slot in item.slots if start <= slot < start + count]
    return torch.tensor([row for i, slot in enumerate(is_slot) for row in (at.get(i, []) if slot else [i])])


def starts(item: TokenSet) -> list[int]:
    return np.cumsum([0, *item.layout.runs[:-1]]).tolist()


@pytest.mark.parametrize("method", sorted(set(METHODS) - MERGING))
def test_pruned_is_the_stock_model_with_rows_taken_out(model: Model, method: str) -> None:
    """The prompt of the pruned item is the stock one less the rows of what was dropped, in its positions, too."""
    for media in ([model.media()[-1]], model.pictures()[:2]):
        pruner = model.pruner("23", method)
        items = pruner.prune(pruner.encode([model.vision.preprocess(one, len(media) - 1) for one in media]))
        asked = model.language.embed(PROMPT, items)
        inputs = model.stock_inputs(media, PROMPT)
        seen, left = model.reads(inputs), rows_kept(model, inputs, items)
        own = ~cls_tokens(model, items, asked.embeds)
        torch.testing.assert_close(asked.embeds[own], seen["inputs_embeds"][0, left], **CLOSE)
        assert asked.visual.sum() == sum(item.kept for item in items)
        if asked.positions is not None:
            assert torch.equal(asked.positions, seen["position_ids"][-3:, 0, left])
        for mine, theirs in zip([] if asked.deepstack is None else asked.deepstack, added(seen, left), strict=True):
            torch.testing.assert_close(mine, theirs, **CLOSE)
        given = without(model.tiny, seen, left, asked.embeds)
        with torch.no_grad():
            state = model.text(**given).last_hidden_state[:, -1]
            expected = model.stock.lm_head(state)[0]
        torch.testing.assert_close(model.language.logits([asked])[0], expected, **CLOSE)


def test_merged_tokens_stand_where_the_first_of_them_stood(model: Model) -> None:
    """In the slots, and so the positions, of tokens that are kept; all but the merged are rows of the stock model."""
    merged = 0
    for one in model.media():
        encoded = model.pruner().encode([model.vision.preprocess(one)])
        (item,), (whole,) = model.pruner("70%", "visionzip").prune(encoded), model.pruner().prune(encoded)
        rows = [row for row, slot in enumerate(item.slots) if slot in whole.slots]
        own = whole.tokens[[whole.slots.index(item.slots[row]) for row in rows]]
        changed = int((item.tokens[rows] != own).any(-1).sum())
        assert changed <= contextual_count(len(item.slots))
        merged += changed
        prompt = model.language.embed(PROMPT, [item])
        if prompt.positions is not None:
            inputs = model.stock_inputs([one], PROMPT)
            left = rows_kept(model, inputs, [item])
            assert torch.equal(prompt.positions, model.reads(inputs)["position_ids"][-3:, 0, left])
    assert merged


def cls_tokens(model: Model, items: Sequence[TokenSet], embeds: Tensor) -> Tensor:
    """Which rows of a prompt are CLS tokens that the stock model does not read: the first of their item."""
    found = torch.zeros(len(embeds), dtype=torch.bool)
    visual = model.language.embed(PROMPT, items).visual.nonzero().flatten()
    start = 0
    for item in items:
        found[visual[start : start + sum(slot == CLS_NOT_READ for slot in item.slots)]] = True
        start += item.kept
    return found


def without(own: Tiny, seen: dict[str, Any], left: Tensor, embeds: Tensor) -> dict[str, Any]:
    """What the stock language model was given, less what was dropped; `embeds` may have a CLS token more."""
    if own.without:
        return own.without(seen, left)
    given: dict[str, Any] = {"inputs_embeds": embeds[None], "attention_mask": None, "use_cache": False}
    places = seen.get("position_ids")
    if places is not None and places.ndim == 3:
        given["position_ids"] = places[:, :, left]
    if seen.get("visual_pos_masks") is not None:
        given["visual_pos_masks"] = seen["visual_pos_masks"][:, left]
        given["deepstack_visual_embeds"] = added(seen, left)
    return given


def added(seen: dict[str, Any], left: Tensor) -> list[Tensor]:
    """What the stock language model was given to add to its visual tokens, for the rows that are left, in their order;
    nothing, where it adds nothing."""
    if seen.get("visual_pos_masks") is None:
        return []
    visual = seen["visual_pos_masks"][0]
    numbers = visual.cumsum(0) - 1
    return [one[numbers[left[visual[left]]]] for one in seen["deepstack_visual_embeds"]]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_as_many_as_asked_each_once(model: Model, method: str) -> None:
    encoded = model.pruner().encode([model.vision.preprocess(one) for one in model.media()])
    for item in encoded:
        total = item.layout.total
        known = {slot for region in item.layout.regions for slot in region.slots}
        for count in (1, 2, 7, 40, total - 1, total, total + 9):
            for spread in (Spread.WITHIN_ITEM, Spread.NONE):
                (kept,) = Pruner(model.vision, Budget(count, spread=spread), method, ()).prune([item])
                capacity = sum(segment.capacity for segment in item.segments)
                assert kept.kept == (total if count >= total else min(count, capacity))
                assert len(kept.slots) == len(kept.tokens)
                real = [slot for slot in kept.slots if slot != CLS_NOT_READ]
                assert len(set(real)) == len(real)
                assert set(real) <= known | {one.cls_slot for one in item.segments}
                assert len(item.segments) == 1 or real == sorted(real)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_batch_is_singles(model: Model, method: str) -> None:
    """Items of all sizes at once; prompts about one, two and three of them in one batch."""
    pruner, media = model.pruner("29", method), model.media()
    pixels = [model.vision.preprocess(one) for one in media]
    counts = [29 + 5 * i for i in range(len(media))]
    together = pruner.keep(pruner.encode(pixels), counts)
    alone = [pruner.keep(pruner.encode([one]), [count])[0] for one, count in zip(pixels, counts, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert (a.slots, a.layout, a.is_unpruned) == (b.slots, b.layout, b.is_unpruned)
        torch.testing.assert_close(a.tokens, b.tokens, **CLOSE)
    pictures = [item for item in alone if not item.layout.is_clip]
    groups = [alone[:1], pictures[1:3], pictures[:3], alone[-1:]]
    prompts = [model.language.embed(PROMPT, group) for group in groups]
    batch = [answer.text for answer in model.language.generate(prompts, GENERATION)]
    assert batch == [model.language.generate([prompt], GENERATION)[0].text for prompt in prompts]
    torch.testing.assert_close(
        model.language.logits(prompts), torch.cat([model.language.logits([one]) for one in prompts]), **CLOSE
    )


QUESTIONS = [PROMPT, "is there a star in it, and of which colour is that then?", "count", "what is left of the ring?"]


@pytest.mark.parametrize("keep", ["all", "23"])
def test_what_prompts_begin_with_can_be_read_once(model: Model, keep: str) -> None:
    """Prompts of all lengths about items of all sizes, in one batch: as if each had been read from its first token."""
    assert model.language.can_share_prefix == (model.language.model.config.model_type != "paligemma")
    pruner = model.pruner(keep)
    items = pruner.prune(pruner.encode([model.vision.preprocess(one) for one in model.media()]))
    prompts = [[model.language.embed(text, [item]) for text in QUESTIONS] for item in items]
    lengths = [beginning(own) for own in prompts]
    assert all(
        own[0].visual[:length].sum() == item.kept for own, length, item in zip(prompts, lengths, items, strict=True)
    )
    if not model.language.can_share_prefix:
        return
    prefix_caches = model.language.read_prefixes(
        [prompt_prefix(own[0], length) for own, length in zip(prompts, lengths, strict=True)]
    )
    batch = [one for own in prompts for one in own]
    known = [one for one in prefix_caches for _ in QUESTIONS]
    torch.testing.assert_close(model.language.logits(batch, known), model.language.logits(batch), **CLOSE)
    assert model.language.generate(batch, GENERATION, known) == model.language.generate(batch, GENERATION)


def beginning(prompts: Sequence[Prompt]) -> int:
    """How many embeddings some prompts begin with alike, less than any has."""
    most = min(len(one.embeds) for one in prompts) - 1
    rows = torch.stack([one.embeds[:most] for one in prompts])
    return int((rows == rows[0]).all(0).all(-1).long().cumprod(0).sum())


def test_several_prompts_are_each_as_if_alone(model: Model, run: Run, tmp_path: Path) -> None:
    """Whatever the batch, and whether or not what they begin with is read once."""
    for number, one in enumerate(model.pictures()):
        one.image.save(tmp_path / f"{number}.png")
    assert run("compress", tmp_path, "-m", model.folder, "-k", "all", "--out", tmp_path / "cache").code == 0
    texts = [*QUESTIONS, "what is <image> then?"]
    (tmp_path / "prompts").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    common = ("answer", tmp_path / "cache", "--max-new-tokens", 8)
    alone = {text: [record["answer"] for record in run(*common, text).records] for text in texts}
    expected = [answer for item in zip(*alone.values(), strict=True) for answer in item]
    for size in (1, 3, 8):
        ran = run(*common, "--prompts", tmp_path / "prompts", "--batch-size", size)
        assert (ran.code, [record["answer"] for record in ran.records]) == (0, expected), size


def test_a_clip_is_read_whole_or_refused(model: Model) -> None:
    """Never as its first frame alone."""
    if supports_clips(model.vision):
        assert model.pruner().preprocess(clip(1, 3)).layout.is_clip
        return
    assert not model.tiny.clip
    with pytest.raises(MediaError, match="this model reads no clips") as caught:
        pipeline.ask(model.pruner("29"), model.language, [clip(1, 3)], PROMPT, GENERATION)
    assert caught.value.hint


def test_asking_is_compressing_then_answering(model: Model, run: Run, tmp_path: Path) -> None:
    for number, one in enumerate(model.pictures()):
        one.image.save(tmp_path / f"{number}.png")
    common = ("-m", model.folder, "-k", "23")
    assert run("compress", tmp_path, *common, "--out", tmp_path / "cache").code == 0
    answers = run("answer", tmp_path / "cache", PROMPT, "--max-new-tokens", 8).records
    assert len(answers) == len(model.tiny.sizes)
    for record in answers:
        asked = run("ask", record["source"], PROMPT, *common, "--max-new-tokens", 8, "--json").records[0]
        assert (asked["answer"], asked["kept"], asked["tokens"]) == (
            record["answer"],
            record["kept"],
            record["tokens"],
        )


def test_halves_hold_no_more_than_their_own(model: Model) -> None:
    """No layer of the other half. What else both may hold is small: norms, patch filters, one word."""
    layers = r"(language|text)_model\.layers"
    text = [name for name, _ in model.vision.model.named_parameters() if re.search(layers, name)]
    tower = r"(vision_tower|vision_model|visual|image_tower|video_tower).*(layers?|blocks)\.\d"
    seen = [name for name, _ in model.language.model.named_parameters() if re.search(tower, name)]
    assert (text, seen) == ([], [])


def test_missing_weights_are_refused_by_name(model: Model, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model.folder, broken)
    weights = load_file(broken / "model.safetensors")
    for half, pattern in (("language", LAYER), ("vision", TOWER)):
        name = next(key for key in weights if re.search(pattern, key))
        save_file({k: v for k, v in weights.items() if k != name}, broken / "model.safetensors", {"format": "pt"})
        found = resolve(str(broken))
        with pytest.raises(ModelError, match="lacks 1 of the weights"):
            getattr(load_family(found.model_type), f"load_{half}_half")(found, CPU)


TOWER = r"(vision|visual|image_tower).*(layers?|blocks)\.0\..*(qkv|q_proj)\.weight"
LAYER = r"^(?!.*(vision|visual|image_tower)).*layers\.1\.self_attn\.q_proj\.weight"


def test_sharded_checkpoints_load(model: Model, tmp_path: Path) -> None:
    whole = model.stock
    whole.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    for path in model.folder.iterdir():
        if "safetensors" not in path.name and not (tmp_path / "sharded" / path.name).exists():
            shutil.copy(path, tmp_path / "sharded")
    found = resolve(str(tmp_path / "sharded"))
    family = load_family(found.model_type)
    for half in ("vision", "language"):
        mine, theirs = getattr(model, half).model, getattr(family, f"load_{half}_half")(found, CPU).model
        for (name, a), (_, b) in zip(mine.named_parameters(), theirs.named_parameters(), strict=True):
            assert a.shape == b.shape
            assert torch.equal(a, b) or "embed_tokens" in name or "lm_head" in name, name


def test_auto_placement_on_a_cpu_is_exact(model: Model) -> None:
    assert choose_placement("cpu", "auto", "auto", load_config(resolve(str(model.folder)))) == CPU


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(model: Model, dtype: torch.dtype) -> None:
    found = resolve(str(model.folder))
    family, where = load_family(found.model_type), Placement(torch.device("cpu"), dtype, "sdpa")
    vision, language = family.load_vision_half(found, where), family.load_language_half(found, where)
    pruner = Pruner(vision, Budget.parse("23"), "prunesid", ())
    items = pruner.prune(pruner.encode([vision.preprocess(model.media()[-1])]))
    assert items[0].tokens.dtype == dtype
    answers = language.generate([language.embed(PROMPT, items)], GENERATION)
    assert answers[0].new_tokens > 0
