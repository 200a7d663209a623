"""What an adapter requires of a checkpoint's config.json, checked before weights are read."""

from __future__ import annotations

from collections.abc import Sequence

from prunesid_cli.errors import UnsupportedModel, UsageError
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.models.spliced.table import TYPES
from prunesid_cli.types import Placement

MODEL_TYPES_WITHOUT_FLASH = ("gemma3", "paligemma", *(name for name, row in TYPES.items() if row.joins_images))
"""Types of models that read images, or whole prompts, in both directions."""


def refuse_flash_attention(placement: Placement, model_name: str) -> None:
    """Raise a `UsageError` if the user asked for Flash Attention, which has no bidirectional masks."""
    if "flash" in (placement.attention or ""):
        raise UsageError(f"{model_name} reads in both directions, which Flash Attention cannot", "leave out --attn")


def check_requirements(checkpoint: Checkpoint, family: str, requirements: Sequence[tuple[bool, str, str]]) -> None:
    """Refuse a checkpoint that does not meet every requirement.

    Args:
        checkpoint: The checkpoint.
        family: Name of the family, as users know it.
        requirements: For each, whether it is met; what the checkpoint has or does instead, as the end of a sentence
            that begins with its name; and what is supported.

    Raises:
        UnsupportedModel: A requirement is not met.
    """
    for is_met, problem, supported in requirements:
        if not is_met:
            raise UnsupportedModel(f"{checkpoint.name} {problem}", hint=f"{family} is supported with {supported}")
