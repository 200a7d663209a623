"""How answers are decoded: left-padded batches, the arguments of `generate`, and callbacks while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteria, StoppingCriteriaList, TextStreamer

from prunesid_cli.models.shared.schema import SchemaProcessor
from prunesid_cli.types import Generation


def left_pad(rows: Sequence[Tensor], fills: Sequence[int] | None = None) -> Tensor:
    """Pad rows on the left.

    Args:
        rows: B tensors [L, ...], of different lengths L.
        fills: What each row is padded with; None: zeros.

    Returns:
        The batch [B, max L, ...].
    """
    longest = max(len(row) for row in rows)
    padded = []
    for row, fill in zip(rows, fills or [0] * len(rows), strict=True):
        padded.append(torch.cat([row.new_full((longest - len(row), *row.shape[1:]), fill), row]))
    return torch.stack(padded)


def generate_options(generation: Generation, tokenizer: Any, stop_ids: Sequence[int] = ()) -> dict[str, Any]:
    """The arguments of the stock `generate` for one way of decoding."""
    options: dict[str, Any] = {"max_new_tokens": generation.max_new_tokens}
    if generation.temperature > 0:
        options |= {"do_sample": True, "temperature": generation.temperature}
    else:
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if generation.schema:
        processor: Any = SchemaProcessor(generation.schema, tokenizer, stop_ids)
        options |= {"logits_processor": LogitsProcessorList([processor]), "num_beams": 1}  # it knows rows, not beams
    if generation.on_text:
        options["streamer"] = _TextCallback(tokenizer, generation.on_text)
    if generation.force_full_length:
        options["min_new_tokens"] = generation.max_new_tokens
    if generation.on_token:
        options["stopping_criteria"] = StoppingCriteriaList([_TokenCallback(generation.on_token)])
    return options


class _TokenCallback(StoppingCriteria):
    """Calls a function after each token of a batch, and never stops the generation."""

    def __init__(self, on_token: Callable[[], object]) -> None:
        self.on_token = on_token

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.on_token()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _TextCallback(TextStreamer):
    """Calls a function with each finished piece of an answer's text, without whitespace at its start."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text
        self.has_started = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.has_started else text.lstrip()
        self.has_started = self.has_started or bool(text)
        self.on_text(text)
