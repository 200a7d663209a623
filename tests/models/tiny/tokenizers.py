"""Small byte-level tokenizers with the special tokens of real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

DIALOGUE = ["what is shown? a red square and a blue circle. first and then", "User: Assistant: Frame from 00:01:"] * 4
UPPERCASE_DIALOGUE = [
    "USER: \nuser what is shown? ASSISTANT: assistant a red square and a blue circle, first and then"
] * 4


def build_byte_level_tokenizer(
    special: Sequence[str], prefix: str | None = None, **attributes: Any
) -> PreTrainedTokenizerFast:
    """Build a tokenizer trained on `DIALOGUE`.

    Args:
        special: Special tokens; their ids count from 0.
        prefix: The special token that is put at the start of every text; None for none.
        attributes: Attributes of the tokenizer.
    """
    tokenizer = _train(special, DIALOGUE, vocab_size=len(special) + 300)
    if prefix:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{prefix} $A", special_tokens=[(prefix, special.index(prefix))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **attributes)


def build_uppercase_tokenizer(special: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer trained on `UPPERCASE_DIALOGUE`.

    Args:
        special: Special tokens; their ids count from 0.
        named: Which of them is `eos_token`, and so on. The others are extra special tokens.
    """
    tokenizer = _train(special, UPPERCASE_DIALOGUE, vocab_size=400)
    extra = [token for token in special if token not in named.values()]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=extra, padding_side="left", **named)


def _train(special: Sequence[str], corpus: list[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer
