"""What an adapter requires of a checkpoint's config.json, checked before weights are read."""

from __future__ import annotations

from collections.abc import Sequence

from prunesid_cli.errors import UnsupportedModel
from prunesid_cli.models.loading.checkpoint import Checkpoint


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
