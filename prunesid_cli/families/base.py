"""The two halves of a vision-language model, as the pipeline sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from prunesid_cli.types import Answer, Encoded, Generation, Placement, TokenSet

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from prunesid_cli.families.checkpoint import Checkpoint


class VisionHalf(Protocol):
    """Pixels -> visual tokens at the cut, with an importance for each. Holds the tower's weights alone."""

    grid: tuple[int, int]
    total: int
    """How many visual tokens of an image the stock model reads."""

    def preprocess(self, image: Image) -> Tensor:
        """One RGB image -> what `encode` stacks, as the checkpoint's own image processor makes it."""
        ...

    def encode(self, pixels: Sequence[Tensor]) -> Encoded: ...


class LanguageHalf(Protocol):
    """Token sets and a prompt -> an answer. Holds the projector and the language model alone."""

    def check(self, prompt: str) -> None:
        """Refuse a prompt that cannot be put to this model, with a `UsageError`."""
        ...

    def embed(self, prompt: str, items: Sequence[TokenSet]) -> Tensor:
        """The whole prompt, visual tokens of the items in their places: [L, D]."""
        ...

    def generate(self, prompts: Sequence[Tensor], how: Generation) -> list[Answer]:
        """Prompts B x [L, D], left-padded to one batch -> answers."""
        ...


class Family(Protocol):
    """A kind of model. `check` refuses a variant that the adapter does not know, before weights are read."""

    def check(self, checkpoint: Checkpoint) -> None: ...

    def vision(self, checkpoint: Checkpoint, placement: Placement) -> VisionHalf: ...

    def language(self, checkpoint: Checkpoint, placement: Placement) -> LanguageHalf: ...
