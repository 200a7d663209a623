"""Many questions about one picture in one forward pass: packed behind one prefix of visual tokens, each seeing the
prefix and itself alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from prunesid_cli.demo.questions import Question

PREFIX = "<s>USER: "
LINKS = ("a", "an", "the", "and", ",", ".")
"""Words of an answer that tell nothing."""


def suffix(prompt: str) -> str:
    """What follows the visual tokens, as the chat template renders it."""
    return f"\n{prompt} ASSISTANT:"


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


class Pack:
    """Texts of one step as tensors: questions packed row by row behind a prefix of `visual` slots.

    ids [B, Q] the packed question and answer tokens; position [B, Q], counted from the end of the prefix; owner [B, Q]:
    which question a token belongs to (-1: padding); target [B, Q]: the next token where that is an answer's, else -100;
    hint [B, Q, 2]: from the last word of the question on, the words that will tell of the next thing ("red", "star"),
    -100 where there is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rows: list[list[Question]]) -> None:
        links = {encode(tokenizer, text)[0] for word in LINKS for text in (word, f" {word}")}
        packed = [self._row(tokenizer, row, links) for row in rows]
        longest = max(len(row[0]) for row in packed)
        fills = (tokenizer.pad_token_id, 0, -1, -100, (-100, -100))
        self.ids, self.position, self.owner, self.target, self.hint = (
            torch.tensor([row[c] + [fill] * (longest - len(row[c])) for row in packed]) for c, fill in enumerate(fills)
        )

    @staticmethod
    def _row(tokenizer: PreTrainedTokenizerFast, questions: list[Question], links: set[int]) -> tuple[list[Any], ...]:
        ending = len(encode(tokenizer, suffix(".").lstrip()))
        row: tuple[list[Any], ...] = ([], [], [], [], [])
        for k, question in enumerate(questions):
            asked = encode(tokenizer, suffix(question.prompt))
            said = [*encode(tokenizer, " " + question.answer), tokenizer.eos_token_id]
            ahead = [next_thing(said[at:-1], links) for at in range(len(said) + 1)]
            parts: tuple[list[Any], ...] = (
                asked + said,
                list(range(len(asked + said))),
                [k] * len(asked + said),
                [-100] * (len(asked) - 1) + said + [-100],
                [(-100, -100)] * (len(asked) - 1 - ending) + ahead[:1] * ending + ahead,
            )
            for column, part in zip(row, parts, strict=True):
                column += part
        return row

    def to(self, device: str) -> Pack:
        for name in ("ids", "position", "owner", "target", "hint"):
            setattr(self, name, getattr(self, name).to(device))
        return self


def next_thing(tokens: list[int], links: set[int]) -> tuple[int, int]:
    """The first one or two tokens that are no link and have none between them; -100 where there are none."""
    start = next((at for at, token in enumerate(tokens) if token not in links), len(tokens))
    first, second, *_ = *tokens[start : start + 2], -100, -100
    return first, -100 if second in links else second


def answer_logits(model: LlavaForConditionalGeneration, prefix: Tensor, visual: Tensor, pack: Pack) -> Tensor:
    """Features [B, T, C] and packed texts -> logits [B, Q, vocabulary]."""
    language = model.model.language_model
    words = language.get_input_embeddings()
    start = words(prefix).expand(len(visual), -1, -1)
    image = model.model.multi_modal_projector(visual)
    embeds = torch.cat([start, image.to(start.dtype), words(pack.ids)], 1)
    before, total = start.shape[1] + image.shape[1], embeds.shape[1]
    position = torch.cat(
        [torch.arange(before, device=visual.device).expand(len(visual), -1), before + pack.position], 1
    )
    seen = torch.ones(total, total, dtype=torch.bool, device=visual.device).tril().repeat(len(visual), 1, 1)
    seen[:, before:, before:] &= pack.owner[:, :, None] == pack.owner[:, None, :]
    mask = torch.zeros(seen.shape, device=visual.device).masked_fill_(~seen, torch.finfo(torch.float32).min)[:, None]
    states = language(inputs_embeds=embeds, attention_mask=mask, position_ids=position, use_cache=False)
    logits: Tensor = model.lm_head(states.last_hidden_state[:, before:])
    return logits


def which_right(logits: Tensor, pack: Pack) -> list[list[bool]]:
    wrong = (logits.argmax(-1) != pack.target) & (pack.target != -100)
    return [
        [not bool(wrong[b][pack.owner[b] == k].any()) for k in range(int(pack.owner[b].max()) + 1)]
        for b in range(len(wrong))
    ]


def share_right(logits: Tensor, pack: Pack) -> float:
    """The share of questions whose whole answer is the most likely one, which is what greedy decoding would say."""
    return float(np.mean([ok for row in which_right(logits, pack) for ok in row]))
