"""Language models that read pictures, or whole prompts, in both directions: those of Gemma 3 and PaliGemma."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from prunesid_cli.errors import UsageError
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.types import Placement, Prompt

MODEL_TYPES_WITHOUT_FLASH = ("gemma3", "paligemma")
"""Types of models that read so."""


def refuse_flash_attention(placement: Placement, name: str) -> None:
    if "flash" in placement.attention:
        raise UsageError(f"{name} reads in both directions, which Flash Attention cannot", hint="try --attn sdpa")


class BidirectionalLanguageHalf(BaseLanguageHalf):
    """A family says in `model_inputs` what sees what, by `token_type_ids`."""

    @contextmanager
    def generation_context(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """`generate` asks this method whether a model can begin with embeddings; these can and do not say so."""
        prepare = self.model.prepare_inputs_for_generation

        def said(input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
            given: dict[str, Any] = prepare(input_ids, inputs_embeds=inputs_embeds, **kwargs)
            # The mask reads types by column, from the first; 5.17 hands on those of the columns that are new.
            types = {"token_type_ids": kwargs["token_type_ids"]} if given.get("token_type_ids") is not None else {}
            return given | types

        self.model.prepare_inputs_for_generation = said
        try:
            yield
        finally:
            del self.model.prepare_inputs_for_generation
