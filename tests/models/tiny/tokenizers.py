"""Small byte-level tokenizers with the special tokens of real ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["what is shown? a red square and a blue circle. first and then", "User: Assistant: Frame from 00:01:"] * 4


def byte_level(special: Sequence[str], starts: str | None = None, **named: Any) -> PreTrainedTokenizerFast:
    """special: tokens of their own, with their ids from 0; starts: what the tokenizer puts first; named: attributes."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(special) + 300,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    if starts:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{starts} $A", special_tokens=[(starts, special.index(starts))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, padding_side="left", **named)
