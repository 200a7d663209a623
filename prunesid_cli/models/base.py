"""The two halves of a vision-language model, as the pipeline sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from prunesid_cli.types import Answer, Encoded, Generation, Layout, Pixels, Placement, Prompt, TokenSet

if TYPE_CHECKING:
    from torch import Tensor

    from prunesid_cli.inputs.image import Media
    from prunesid_cli.models.loading.checkpoint import Checkpoint
    from prunesid_cli.models.shared.shared_prefix import PrefixCache


class VisionHalf(Protocol):
    """Pixels -> visual tokens at the cut, with an importance for each. Holds the tower's weights alone."""

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """One picture or clip -> what `encode` takes, as the checkpoint's own processor makes it.

        companions: how many more of its kind there are in the prompt, where that changes how they are read.
        """
        ...

    def encode(self, items: Sequence[Pixels]) -> list[Encoded]: ...


class LanguageHalf(Protocol):
    """Token sets and a prompt -> an answer. Holds the projector and the language model alone.

    placeholders  ids that stand for visual tokens, one for each run of an item
    can_share_prefix  whether what prompts begin with alike can be read once for all of them
    """

    placeholder_ids: frozenset[int]
    can_share_prefix: bool

    def check_prompt(self, prompt: str, num_items: int) -> None:
        """Refuse a prompt that cannot be put to this model about so many items, with a `UsageError`."""
        ...

    def tokenize(self, prompt: str, layouts: Sequence[Layout]) -> Tensor:
        """The ids [L] of a whole prompt about some items."""
        ...

    def embed(self, prompt: str, items: Sequence[TokenSet]) -> Prompt:
        """The whole prompt, visual tokens of the items in their places."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], generation: Generation, prefix_caches: Sequence[PrefixCache] = ()
    ) -> list[Answer]:
        """Prompts, left-padded to one batch -> answers; `begun`: what each begins with, where it was read before."""
        ...

    def read_prefixes(self, prompts: Sequence[Prompt]) -> list[PrefixCache]:
        """Read what other prompts begin with."""
        ...

    def logits(self, prompts: Sequence[Prompt]) -> Tensor:
        """Prompts -> scores of the first token of each answer [B, vocabulary], fp32."""
        ...


class Family(Protocol):
    """A kind of model. `check_supported` refuses a variant that the adapter does not know, before weights are read."""

    def check_supported(self, checkpoint: Checkpoint) -> None: ...

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> VisionHalf: ...

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LanguageHalf: ...
