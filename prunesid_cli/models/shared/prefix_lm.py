"""Language models that read images, or whole prompts, with bidirectional attention: Gemma 3 and PaliGemma."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from prunesid_cli.errors import UsageError
from prunesid_cli.models.shared.language_half import BaseLanguageHalf
from prunesid_cli.types import Placement, Prompt

MODEL_TYPES_WITHOUT_FLASH = ("gemma3", "paligemma")


def refuse_flash_attention(placement: Placement, model_name: str) -> None:
    """Raise a `UsageError` if the user asked for Flash Attention, which has no bidirectional masks."""
    if "flash" in (placement.attention or ""):
        raise UsageError(f"{model_name} reads in both directions, which Flash Attention cannot", "leave out --attn")


class BidirectionalLanguageHalf(BaseLanguageHalf):
    """A language half that attends in both directions.

    A family adds `token_type_ids` to `model_inputs`; they say which tokens attend to which.
    """

    @contextmanager
    def generation_context(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """Replace the model's `prepare_inputs_for_generation` while a batch is generated.

        `generate` inspects that method's arguments to see whether a model accepts embeddings. These models do, but the
        argument is missing in their signatures.
        """
        stock_prepare = self.model.prepare_inputs_for_generation

        def prepare(input_ids: Tensor, inputs_embeds: Tensor | None = None, **kwargs: Any) -> dict[str, Any]:
            inputs: dict[str, Any] = stock_prepare(input_ids, inputs_embeds=inputs_embeds, **kwargs)
            # The mask indexes the types by column, from the first; transformers 5.17 passes on those of new columns.
            if inputs.get("token_type_ids") is not None:
                inputs["token_type_ids"] = kwargs["token_type_ids"]
            return inputs

        self.model.prepare_inputs_for_generation = prepare
        try:
            yield
        finally:
            del self.model.prepare_inputs_for_generation
