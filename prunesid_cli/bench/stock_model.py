"""The stock model of transformers, run as its users run it: from its processor's pixels to the last token.

It replaces the model inside the language half. That model is the same but for the tower, so no weights are in memory
twice except the tower's, and the pruned settings run the stages after the tower on the weights of the stock model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import ProcessorMixin

from prunesid_cli.inputs.image import Media
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.loading.weights import load_config, load_model_half
from prunesid_cli.models.shared.generation import generate_options
from prunesid_cli.types import Generation, Layout, Placement


@dataclass(frozen=True)
class StockModel:
    """The whole model.

    Attributes:
        language: A language half that holds it.
    """

    language: Any

    @torch.no_grad()
    def generate(self, inputs: Any, generation: Generation, on_prefill: Callable[[], object]) -> None:
        """Answer prompts.

        Args:
            inputs: What `stock_inputs` returns, on the CPU.
            generation: How to decode.
            on_prefill: Called when the language model starts to read the prompts.
        """
        model, language = self.language.model, self.language
        device_inputs = inputs.to(model.device, model.dtype)

        def hook(module: Any, args: Any) -> None:
            handle.remove()
            on_prefill()

        # By either name under which models of transformers hold their language model.
        text_model = getattr(model.model, "language_model", None) or model.model.text_model
        handle = text_model.register_forward_pre_hook(hook)
        options = generate_options(generation, language.tokenizer)
        model.generate(**device_inputs, pad_token_id=language.pad_token_id(), **options)


def stock_inputs(language: Any, media: Sequence[Media], prompts: Sequence[str]) -> Any:
    """Run the stock processor on pictures, with one prompt about each."""
    contents = [[{"type": "image"}, {"type": "text", "text": prompt}] for prompt in prompts]
    texts = [language.render_chat([{"role": "user", "content": content}]) for content in contents]
    bos_token = language.tokenizer.bos_token
    language.tokenizer.padding_side = "left"
    inputs = language.processor(
        text=texts,
        images=[[item.image] for item in media],
        return_tensors="pt",
        padding=True,
        add_special_tokens=not (bos_token and texts[0].startswith(bos_token)),
    )
    inputs.pop("labels", None)  # of PaliGemma, for training
    return inputs


def can_run_stock_model(
    checkpoint: Checkpoint, language: Any, media: Sequence[Media], layouts: Sequence[Layout]
) -> bool:
    """Whether the stock model can be asked about these media.

    It must be a class of transformers with files in its format, and its processor, with the parts that are installed,
    must make the same prompts as ours, token for token.
    """
    is_stock = isinstance(language.processor, ProcessorMixin) and not checkpoint.original_config
    if not is_stock or any(item.is_clip for item in media):
        return False
    prompt = "what is shown?"
    for item, layout in zip(media, layouts, strict=True):
        our_length = len(language.tokenize(prompt, [layout])) - len(layout.runs) + layout.total
        if stock_inputs(language, [item], [prompt])["attention_mask"].sum() != our_length:
            return False
    return True


def load_stock_model(checkpoint: Checkpoint, language: Any, placement: Placement) -> StockModel:
    """Load the stock model into a language half, in place of the half's own model, which is released first."""
    model_class, language.model = type(language.model), None
    language.model = load_model_half(model_class, checkpoint, load_config(checkpoint), placement)
    return StockModel(language)
