"""Tokenizers of a few hundred words, with the special tokens of the real ones under their real names."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["USER: \nuser what is shown? ASSISTANT: assistant a red square and a blue circle, first and then"] * 4


def tokenizer(special: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE; the first tokens are `special`, in their order; `named`: which of them is `eos_token`, ..."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    more = [one for one in special if one not in named.values()]
    return PreTrainedTokenizerFast(tokenizer_object=raw, extra_special_tokens=more, padding_side="left", **named)
