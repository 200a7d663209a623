"""The contract between a family of models and the pipeline.

A vision-language model is cut where its visual tokens pass from the vision side to the language side. The place of the
cut depends on the family: before or after the projector. The vision half turns an image or clip into visual tokens
[N, C] at the cut, with a saliency for each token, and a `Layout`: how many slots the item fills in a prompt, and what
each slot shows. The selection keeps some of these tokens; they form a `TokenSet`, which can be cached. The language
half turns token sets and a prompt into an answer. It uses the layout to build the prompt as if nothing had been pruned,
leaves out the slots of pruned tokens, and keeps the positions of the others.

If everything is kept, both halves together give the answers of the stock model, token for token. Neither half holds
weights of the other. A new family implements the three protocols below, and gets a row in `models.FAMILIES`;
`models.shared` has the parts that families have in common.
"""

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
    """Turns images and clips into visual tokens at the cut. Holds only the weights of the vision side.

    A vision half may also have these attributes:
        processor: The checkpoint's processor. Clips are accepted only if it has a `video_token`.
        reads_clips: Whether clips are accepted then.
        fixed_short_side: Number of pixels of an image's shorter side that the model reads, whatever the image's size;
            None if it reads more of a larger image. Larger images can be downscaled while they are decoded.
        methods: Name of a selection method -> the method that this family uses under that name.
        pad_to_square(): Lets it pad images and frames to squares from then on, where it crops them otherwise.
    """

    def preprocess(self, media: Media, num_other_images: int = 0) -> Pixels:
        """Prepare one image or clip for the tower, as the checkpoint's own processor does. Runs on the CPU.

        Args:
            media: The image or clip.
            num_other_images: Number of other images in the same prompt, for families that then preprocess an image in
                another way. Other families ignore it.

        Returns:
            The tower's input tensors, and the item's layout.

        Raises:
            MediaError: The model cannot read an image of this size.
            ModelError: The model takes no clips.
        """
        ...

    def encode(self, items: Sequence[Pixels]) -> list[Encoded]:
        """Run the tower on a batch of items.

        Args:
            items: Items from `preprocess`, which may differ in size.

        Returns:
            For each item, one or more segments: an image, a tile, a frame, or a window of a large image. One selection
            runs over each. A segment has N tokens [N, C] and their saliency [N]. An item's encoding does not
            depend on the other items of the batch. No two segments of an item share a slot.
        """
        ...


class LanguageHalf(Protocol):
    """Turns token sets and prompts into answers. Holds only the projector and the language model.

    Attributes:
        placeholder_ids: Token ids that stand for visual tokens in a tokenized prompt: one for each run of an item.
        can_share_prefix: Whether the common prefix of several prompts can be read once for all of them. Not the case
            if earlier tokens attend to later ones, or if a layer keeps a state besides keys and values.
        allow_special_tokens: Whether special tokens in a prompt have their meaning; else they are plain text. In the
            layouts of items they never do, except those that the processor itself writes for an item.
        system: A system prompt; empty: that of the chat template, if it has one.
    """

    placeholder_ids: frozenset[int]
    can_share_prefix: bool
    allow_special_tokens: bool
    system: str

    def check_prompt(self, prompt: str, num_items: int) -> None:
        """Check a prompt before anything is computed for it.

        Args:
            prompt: The user's text, in which `<image>` or `<video>` may mark the places of the items.
            num_items: Number of items that the prompt is about.

        Raises:
            UsageError: It has another number of tags than items, or is empty; or special tokens are allowed, and it
                contains the model's own placeholder.
        """
        ...

    def tokenize(self, prompt: str, layouts: Sequence[Layout]) -> Tensor:
        """Tokenize a whole prompt, with chat template.

        Args:
            prompt: The user's text.
            layouts: The layouts of the items that it is about.

        Returns:
            Token ids [L], with one placeholder for each run of each item.
        """
        ...

    def check_item(self, item: TokenSet) -> None:
        """Check that a token set from a cache is one of this model.

        Raises:
            CacheError: Its tokens have another width than the cut of this model, or its layout is of another kind.
        """
        ...

    def embed(self, prompt: str, items: Sequence[TokenSet]) -> Prompt:
        """Build a whole prompt, with the kept tokens of the items in their places.

        Args:
            prompt: The user's text.
            items: The token sets of the items that it is about.

        Returns:
            Embeddings [L, D], and what else the model needs of the prompt.

        Raises:
            UsageError: See `check_prompt`.
            ModelError: The chat template does not place every item, or an item does not fit this model.
        """
        ...

    def generate(
        self, prompts: Sequence[Prompt], generation: Generation, prefix_caches: Sequence[PrefixCache] = ()
    ) -> list[Answer]:
        """Answer prompts in one batch, padded on the left.

        Args:
            prompts: B prompts.
            generation: How to decode.
            prefix_caches: For each prompt the cache of its first tokens, fewer than it has; empty if none were read.

        Returns:
            B answers.
        """
        ...

    def max_batch_tokens(self) -> int | None:
        """How many tokens, of all prompts of a batch and their answers, have room for their keys and values.

        Returns:
            None if that is not known.
        """
        ...

    def read_prefixes(self, prompts: Sequence[Prompt]) -> list[PrefixCache]:
        """Run the first tokens of prompts through the language model, and return their keys and values.

        Args:
            prompts: The prefixes, as prompts of their own.
        """
        ...

    def logits(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return the scores of each answer's first token.

        Args:
            prompts: B prompts.

        Returns:
            Logits [B, vocabulary], fp32.
        """
        ...


class Family(Protocol):
    """The adapter for one or more types of models."""

    def check_supported(self, checkpoint: Checkpoint) -> None:
        """Check a checkpoint's configuration before weights are read.

        Raises:
            UnsupportedModel: It is a variant that the adapter does not support.
        """
        ...

    def load_vision_half(self, checkpoint: Checkpoint, placement: Placement) -> VisionHalf:
        """Load the vision half.

        Args:
            checkpoint: A supported checkpoint.
            placement: Where and how it runs.

        Raises:
            ModelError: Weights are missing or damaged, or do not fit into memory.
        """
        ...

    def load_language_half(self, checkpoint: Checkpoint, placement: Placement) -> LanguageHalf:
        """Load the language half. See `load_vision_half`."""
        ...
