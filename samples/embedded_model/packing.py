"""Packing: several questions about one picture in one forward pass.

The questions share a prefix of visual tokens, of one or more pictures. Each attends to the prefix and to itself only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunesid_cli.demo.questions import Question

PROMPT_PREFIX = "<s>USER: "
LINK_WORDS = ("a", "an", "the", "and", ",", ".")
"""Words of an answer without information."""


def prompt_suffix(prompt: str) -> str:
    """Return the text after the visual tokens, as the chat template renders it."""
    return f"\n{prompt} ASSISTANT:"


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the token ids of a text."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


class Pack:
    """The texts of a training step as tensors; each row has the questions about one picture.

    Attributes:
        ids: Tokens of questions and answers [B, Q].
        position: Position of each token after the prefix [B, Q].
        owner: Index of the question that a token belongs to [B, Q]; -1 for padding.
        target: The next token, where that belongs to an answer [B, Q]; else -100.
        hint: From the last word of a question on, the words that describe the next thing of the answer, such as "red"
            and "star" [B, Q, 2]; -100 where there are none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rows: list[list[Question]]) -> None:
        links = {encode(tokenizer, text)[0] for word in LINK_WORDS for text in (word, f" {word}")}
        packed = [self._pack_row(tokenizer, row, links) for row in rows]
        longest = max(len(row[0]) for row in packed)
        fills = (tokenizer.pad_token_id, 0, -1, -100, (-100, -100))
        self.ids, self.position, self.owner, self.target, self.hint = (
            torch.tensor([row[column] + [fill] * (longest - len(row[column])) for row in packed])
            for column, fill in enumerate(fills)
        )

    @staticmethod
    def _pack_row(
        tokenizer: PreTrainedTokenizerFast, questions: list[Question], links: set[int]
    ) -> tuple[list[Any], ...]:
        """The columns of a row: ids, position, owner, target and hint."""
        ending_length = len(encode(tokenizer, prompt_suffix(".").lstrip()))
        row: tuple[list[Any], ...] = ([], [], [], [], [])
        for index, question in enumerate(questions):
            prompt = encode(tokenizer, prompt_suffix(question.prompt))
            answer = [*encode(tokenizer, " " + question.answer), tokenizer.eos_token_id]
            hints = [next_thing(answer[start:-1], links) for start in range(len(answer) + 1)]
            length = len(prompt) + len(answer)
            parts: tuple[list[Any], ...] = (
                prompt + answer,
                list(range(length)),
                [index] * length,
                [-100] * (len(prompt) - 1) + answer + [-100],
                [(-100, -100)] * (len(prompt) - 1 - ending_length) + hints[:1] * ending_length + hints,
            )
            for column, part in zip(row, parts, strict=True):
                column += part
        return row

    def to(self, device: str) -> Pack:
        """Move all tensors to a device, in place."""
        for name in ("ids", "position", "owner", "target", "hint"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def next_thing(tokens: list[int], links: set[int]) -> tuple[int, int]:
    """Return the first token that is no link word, and the one after it unless it is one; -100 where there is none."""
    start = next((index for index, token in enumerate(tokens) if token not in links), len(tokens))
    first, second, *_ = *tokens[start : start + 2], -100, -100
    return first, -100 if second in links else second


def answer_logits(
    model: LlavaForConditionalGeneration, prefix: Tensor, separator: int, visual: Tensor, pack: Pack
) -> Tensor:
    """Run the language model on packed texts.

    Args:
        model: The model.
        prefix: Token ids before the visual tokens [1, S].
        separator: Token id between two pictures.
        visual: Visual tokens at the cut of P pictures [B, P, T, C].
        pack: The texts.

    Returns:
        Logits [B, Q, vocabulary].
    """
    language = model.model.language_model
    embed = language.get_input_embeddings()
    start = embed(prefix).expand(len(visual), -1, -1)
    between = embed.weight[separator].expand(*visual.shape[:2], 1, -1)
    tokens = model.model.multi_modal_projector(visual).to(start.dtype)
    image = torch.cat([tokens, between], 2).flatten(1, 2)[:, :-1]  # none after the last: questions begin with it
    embeds = torch.cat([start, image, embed(pack.ids)], 1)
    prefix_length, total = start.shape[1] + image.shape[1], embeds.shape[1]
    position = torch.cat(
        [torch.arange(prefix_length, device=visual.device).expand(len(visual), -1), prefix_length + pack.position], 1
    )
    is_visible = torch.ones(total, total, dtype=torch.bool, device=visual.device).tril().repeat(len(visual), 1, 1)
    is_visible[:, prefix_length:, prefix_length:] &= pack.owner[:, :, None] == pack.owner[:, None, :]
    mask = torch.zeros(is_visible.shape, device=visual.device).masked_fill_(
        ~is_visible, torch.finfo(torch.float32).min
    )[:, None]
    states = language(inputs_embeds=embeds, attention_mask=mask, position_ids=position, use_cache=False)
    logits: Tensor = model.lm_head(states.last_hidden_state[:, prefix_length:])
    return logits


def share_right(logits: Tensor, pack: Pack) -> float:
    """Return the share of questions that greedy decoding answers right: all tokens of the answer are the likeliest."""
    is_wrong = (logits.argmax(-1) != pack.target) & (pack.target != -100)
    is_right = []
    for row, owner in zip(is_wrong, pack.owner, strict=True):
        for question in range(int(owner.max()) + 1):
            is_right.append(not bool(row[owner == question].any()))
    return float(np.mean(is_right))
