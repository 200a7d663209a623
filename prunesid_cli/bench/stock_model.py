"""The rival: the stock model as anybody would use it, from its processor's pixels to the last token.

It takes the place of the language half's own model, which is the same but for the tower, so that nothing is in memory
twice but that; the stages of the pruned model after the tower then run on the very weights of the rival.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import ProcessorMixin

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_half
from prunesid_cli.types import Generation, Layout, Placement


@dataclass(frozen=True)
class Stock:
    """`language`: a language half with the whole model in it."""

    language: Any

    @torch.no_grad()
    def generate(self, inputs: Any, generation: Generation, seen: Callable[[], object]) -> None:
        """Inputs on the CPU -> answers; `seen` is called when the language model begins to read."""
        model, language = self.language.model, self.language
        there = inputs.to(model.device, language.model.dtype)

        def begins(module: Any, args: Any) -> None:
            hook.remove()
            seen()

        hook = text_of(model).register_forward_pre_hook(begins)
        model.generate(**there, pad_token_id=language.padding(), **language.options(generation))


def text_of(model: Any) -> Any:
    """The language model within a stock model, by either name."""
    return getattr(model.model, "language_model", None) or model.model.text_model


def inputs_of(language: Any, media: Sequence[Media], words: Sequence[str]) -> Any:
    """What the stock processor makes of pictures, with a prompt about each."""
    said = [[{"type": "image"}, {"type": "text", "text": text}] for text in words]
    texts = [language.render([{"role": "user", "content": one}]) for one in said]
    bos, language.tokenizer.padding_side = language.tokenizer.bos_token, "left"
    begins = bool(bos) and texts[0].startswith(bos)
    options = {"return_tensors": "pt", "padding": True, "add_special_tokens": not begins}
    made = language.processor(text=texts, images=[[one.image] for one in media], **options)
    made.pop("labels", None)  # of PaliGemma, for training
    return made


def is_known(checkpoint: Checkpoint, language: Any, media: Sequence[Media], layouts: Sequence[Layout]) -> bool:
    """Whether the stock model can be asked about these: it is a class of transformers, with files in its format, and
    its processor, with the parts that are installed, makes of them the prompts that we do, token for token."""
    is_stock = isinstance(language.processor, ProcessorMixin) and not checkpoint.original
    if not is_stock or any(one.is_clip for one in media):
        return False
    text = "what is shown?"
    for one, layout in zip(media, layouts, strict=True):
        ours = len(language.tokenize(text, [layout])) - len(layout.runs) + layout.total
        if inputs_of(language, [one], [text])["attention_mask"].sum() != ours:
            return False
    return True


def made_whole(checkpoint: Checkpoint, language: Any, placement: Placement) -> Stock:
    """Load the stock model in the place of the language half's own, which is let go first."""
    kind, attention = type(language.model), language.model.config._attn_implementation
    language.model = None
    language.model = load_half(kind, checkpoint, load_config(checkpoint), replace(placement, attention=attention))
    return Stock(language)
