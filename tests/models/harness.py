"""What the tests of all families use: a tiny checkpoint as its two halves and as the stock model, and comparisons."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging import version
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from prunesid_cli.inputs.image import Media, media_from_frames, media_from_image
from prunesid_cli.models import FAMILIES, SPLICED, load_family
from prunesid_cli.models.loading.checkpoint import resolve
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.models.shared.processor import placeholder_ids
from prunesid_cli.models.spliced.table import TYPES
from prunesid_cli.pipeline.ask import ask
from prunesid_cli.pipeline.pruner import Pruner
from prunesid_cli.selection.budget import Budget
from prunesid_cli.types import CLS_NOT_READ, Encoded, Generation, Layout, Placement, Prompt, TokenSet
from tests.models.tiny import TINY
from tests.models.tiny.base import TinyModel

PROMPT = "what is shown?"
NESTED_CHOICES = ("red", "red square, then", "no")
"""One of these choices begins with another one, so the end of an answer counts, too."""
GENERATION = Generation(max_new_tokens=8)
CPU = Placement(torch.device("cpu"), torch.float32, None)
CLOSE = {"atol": 1e-4, "rtol": 0.0}
QUICK_SPLICED_TYPES = ("gemma3", "glm4v", "internvl", "mistral3")
"""The types of the generic adapter whose laws always run: masks in both directions, packed
patches, clips, and one image at a time."""
SLOW_TYPES = (
    "qwen3_vl_moe", "qwen3_5_moe", "mgm_gemma", "mgm_mixtral", "mini_gemini", "mini_gemini_gemma", "mini_gemini_mixtral"
)  # fmt: skip
"""Other types that differ little from one whose laws always run."""


def variant_marks(name: str) -> list[pytest.MarkDecorator]:
    """One variant of each family always runs; the others run with the slow tests, as far as torchvision is there."""
    marks = [pytest.mark.slow] if is_slow(name) else []
    if needs_torchvision(name) and find_spec("torchvision") is None:
        marks.append(pytest.mark.skip(reason="the stock image processor of this type needs torchvision"))
    since = TYPES[name.split("-")[0]].since if name.split("-")[0] in TYPES else "0"
    if version.parse(transformers.__version__) < version.parse(since):
        marks.append(pytest.mark.skip(reason=f"the type was tried with transformers {since} and newer"))
    return marks


def is_slow(name: str) -> bool:
    """Whether the laws of a variant run with the slow tests."""
    is_slow_generic = FAMILIES.get(name) == SPLICED and name not in QUICK_SPLICED_TYPES
    return "-" in name or name in SLOW_TYPES or is_slow_generic


def needs_torchvision(name: str) -> bool:
    """Whether transformers has no image processor for a type that does without torchvision."""
    processors = IMAGE_PROCESSOR_MAPPING_NAMES.get(name, {"pil": ""})
    return FAMILIES.get(name) == SPLICED and "pil" not in processors


VARIANTS = [pytest.param(name, marks=variant_marks(name)) for name in sorted(TINY)]


def make_image(seed: int, size: tuple[int, int]) -> Image.Image:
    """An image with smooth random colours everywhere, different for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def make_clip(seed: int, frames: int = 6, size: tuple[int, int] = (320, 240)) -> Media:
    """A clip of random frames, half a second apart."""
    images = tuple(make_image(100 * seed + number, size) for number in range(frames))
    return media_from_frames(images, tuple(number / 2 for number in range(frames)))


@dataclass(frozen=True)
class StockPrompt:
    """What the stock model reads for a prompt, and the items of that prompt as this package encodes them.

    Attributes:
        encoded: The items, with nothing pruned.
        inputs: The inputs of the stock model.
        language_inputs: The arguments that it passes to its language model.
    """

    encoded: list[Encoded]
    inputs: dict[str, Any]
    language_inputs: dict[str, Any]


@dataclass(frozen=True)
class Model:
    """A tiny checkpoint: its halves as this package loads them, and the stock model with eager attention."""

    folder: Path
    tiny: TinyModel
    placement: Placement = CPU

    @cached_property
    def vision(self) -> Any:
        checkpoint = resolve(str(self.folder))
        return load_family(checkpoint.model_type).load_vision_half(checkpoint, self.placement)

    @cached_property
    def language(self) -> BaseLanguageHalf:
        checkpoint = resolve(str(self.folder))
        half = load_family(checkpoint.model_type).load_language_half(checkpoint, self.placement)
        assert isinstance(half, BaseLanguageHalf)
        return half

    @cached_property
    def stock(self) -> Any:
        if self.tiny.load_stock:
            return self.tiny.load_stock(self.folder)
        return AutoModelForImageTextToText.from_pretrained(self.folder, attn_implementation="eager").eval()

    @property
    def stock_language_model(self) -> Any:
        """The stock model's language model, under either of its names."""
        return getattr(self.stock.model, "language_model", None) or self.stock.model.text_model

    @property
    def stock_generation_config(self) -> Any:
        return getattr(
            self.stock, "lm", self.stock
        ).generation_config  # the reference of Mini-Gemini has an inner model

    @property
    def processor(self) -> Any:
        return self.stock.processor if self.tiny.load_stock else self.language.processor

    def pruner(self, keep: str = "all", method: str = "prunesid", **options: bool) -> Pruner:
        return Pruner(self.vision, Budget.parse(keep, **options), method, ())

    def images(self) -> list[Media]:
        return [media_from_image(make_image(number, size)) for number, size in enumerate(self.tiny.sizes)]

    def media(self) -> list[Media]:
        """Images, and clips if the family takes them."""
        reads_clips = self.tiny.clip_inputs and not getattr(self.vision, "clips_need", "")
        return self.images() + ([make_clip(1), make_clip(2, 3)] if reads_clips else [])

    @cached_property
    def encoded(self) -> list[Encoded]:
        """Each of `media`, encoded alone; once for the tests of all methods, because it takes most of their time."""
        return [self.pruner().encode([self.vision.preprocess(media)])[0] for media in self.media()]

    @cached_property
    def encoded_batch(self) -> list[Encoded]:
        """All `media`, encoded in one batch."""
        return self.pruner().encode([self.vision.preprocess(media) for media in self.media()])

    @cached_property
    def stock_prompts(self) -> list[StockPrompt]:
        """A prompt about the last of `media`, and one about two images."""
        prompts = []
        for media in ([self.media()[-1]], self.images()[:2]):
            encoded = self.pruner().encode([self.vision.preprocess(item, len(media) - 1) for item in media])
            inputs = self.stock_inputs(media, PROMPT)
            prompts.append(StockPrompt(encoded, inputs, self.stock_language_inputs(inputs)))
        return prompts

    def stock_inputs(self, media: Sequence[Media], prompt: str) -> dict[str, Any]:
        """The stock model's inputs for a prompt about images, from its own processor, or about one clip.

        The stock processor needs torchvision for clips, so their pixels and text come from this package.
        """
        if media[0].is_clip:
            assert self.tiny.clip_inputs
            (pixels,) = [self.vision.preprocess(item) for item in media]
            ids = expand_placeholders(self.language, prompt, pixels.layout)[None]
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if "mm_token_type_ids" in signature(self.stock.forward).parameters:
                inputs["mm_token_type_ids"] = torch.tensor(self.processor.create_mm_token_type_ids(ids.tolist()))
            return {**inputs, **self.tiny.clip_inputs(pixels)}
        texts = re.split("<image>", prompt) if "<image>" in prompt else ["", *[""] * (len(media) - 1), prompt]
        content: list[dict[str, str]] = []
        for text, has_image in zip(texts, [*[True] * len(media), False], strict=True):
            content += [{"type": "text", "text": text}] if text else []
            content += [{"type": "image"}] if has_image else []
        text = self.language.render_chat([{"role": "user", "content": content}])
        bos_token = self.processor.tokenizer.bos_token
        has_bos = bos_token and text.startswith(bos_token)
        images = [[item.image for item in media]]  # nested as in the processor's own chat template
        options = {"return_tensors": "pt", "add_special_tokens": not has_bos, **self.tiny.processor_options}
        if not hasattr(self.stock, "forward"):  # the reference of Mini-Gemini
            return dict(self.processor(images=images, text=[text], **options))
        arguments = signature(self.stock.forward).parameters
        if "mm_token_type_ids" in arguments:
            options["return_mm_token_type_ids"] = True
        inputs = dict(self.processor(images=images, text=[text], **options))
        # Some processors also return what only they use.
        return {name: value for name, value in inputs.items() if name in arguments}

    def generate_stock_answer(self, inputs: dict[str, Any]) -> str:
        output = self.stock.generate(**inputs, max_new_tokens=GENERATION.max_new_tokens, do_sample=False)
        new_ids = output[0, inputs["input_ids"].shape[1] :]
        return str(self.processor.tokenizer.decode(new_ids, skip_special_tokens=True)).strip()

    def stock_language_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The arguments that the stock model passes to its language model."""
        return recorded_arguments(self.stock_language_model, lambda: self.stock(**inputs))

    def language_inputs(self, prompt: Prompt) -> dict[str, Any]:
        """The arguments that our language half makes the stock model pass to its language model."""
        model = self.language.model.model
        language_model = getattr(model, "language_model", None) or getattr(model, "text_model", model)
        return recorded_arguments(language_model, lambda: self.language.logits([prompt]))

    def head_scores(self, prompt: Prompt) -> Tensor:
        """What the head of our language half puts out for a prompt's last token, before it is scaled or capped."""
        scores: list[Tensor] = []
        hook = self.language.model.lm_head.register_forward_hook(lambda *call: scores.append(call[-1][0, -1]))
        self.language.logits([prompt])
        hook.remove()
        return scores[0]


def recorded_arguments(module: Any, call: Callable[[], object]) -> dict[str, Any]:
    """The arguments with which a module is called first."""
    calls: list[dict[str, Any]] = []
    hook = module.register_forward_pre_hook(lambda module, args, kwargs: calls.append(dict(kwargs)), with_kwargs=True)
    with torch.no_grad():
        call()
    hook.remove()
    return calls[0]


def expand_placeholders(language: BaseLanguageHalf, prompt: str, layout: Layout) -> Tensor:
    """The ids of a prompt about one item, with a placeholder for each of the item's slots."""
    ids, runs = language.tokenize(prompt, [layout]).tolist(), iter(layout.runs)
    expanded: list[int] = []
    for token in ids:
        expanded += [token] * (next(runs) if token in language.placeholder_ids else 1)
    return torch.tensor(expanded)


def check_keeping_all(model: Model, media: list[Media], prompt: str, allow_empty: bool = False) -> None:
    """Check that prompt length, logits and answer are those of the stock model if no token is pruned."""
    answer, items = ask(model.pruner(), model.language, media, prompt, GENERATION)
    inputs = model.stock_inputs(media, prompt)
    assert all(item.is_unpruned and item.layout.regions for item in items)
    embedded = model.language.embed(prompt, items)
    assert len(embedded.ids) == inputs["input_ids"].shape[1] == answer.prompt_tokens
    with torch.no_grad():
        expected = model.stock(**inputs).logits[0, -1]
    torch.testing.assert_close(model.language.logits([embedded])[0], expected, **CLOSE)
    assert answer.text == model.generate_stock_answer(inputs)
    assert answer.text or allow_empty


def kept_rows(model: Model, inputs: dict[str, Any], items: Sequence[TokenSet]) -> Tensor:
    """The rows of the stock prompt that are not pruned, in the order of the items' tokens."""
    is_slot = torch.isin(inputs["input_ids"][0], torch.tensor(sorted(placeholder_ids(model.stock.config)))).tolist()
    slot_rows = iter([row for row, is_visual in enumerate(is_slot) if is_visual])
    kept_by_run = {}
    for item in items:
        start = 0
        for count in item.layout.runs:
            rows = [next(slot_rows) for _ in range(count)]
            kept_by_run[rows[0]] = [rows[slot - start] for slot in item.slots if start <= slot < start + count]
            start += count
    kept: list[int] = []
    for row, is_visual in enumerate(is_slot):
        kept += kept_by_run.get(row, []) if is_visual else [row]
    return torch.tensor(kept)


def unread_cls_rows(prompt: Prompt, items: Sequence[TokenSet]) -> Tensor:
    """Which rows of a prompt are CLS tokens that the stock model does not read: the first rows of their item."""
    is_cls = torch.zeros(len(prompt.ids), dtype=torch.bool)
    visual = prompt.visual.nonzero().flatten()
    start = 0
    for item in items:
        is_cls[visual[start : start + sum(slot == CLS_NOT_READ for slot in item.slots)]] = True
        start += item.kept
    return is_cls
