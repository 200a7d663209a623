"""Scores given answers: how probable a model finds each of several choices, without decoding.

A choice is scored by its whole sequence of tokens. The scores of all tokens of a choice come from one pass over the
prompt, whose keys and values all choices share, and one step for each further token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from prunesid_cli.models.shared.shared_prefix import PrefixCache, prompt_prefix
from prunesid_cli.runtime.batch_size import batched
from prunesid_cli.types import Answer, Prompt

Ids = tuple[int, ...]


class _ForcedTokens(LogitsProcessor):
    """Makes each row of a batch go on with given tokens, and with any token after them."""

    def __init__(self, paths: Sequence[Ids], start: int) -> None:
        self.paths, self.start = paths, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.start
        forced = torch.tensor([path[step] if step < len(path) else 0 for path in self.paths], device=scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, forced[:, None], 0)


@lru_cache(maxsize=1)  # the same for all batches of a run
def choice_sequences(language: Any, choices: tuple[str, ...]) -> list[list[Ids]]:
    """The token ids by which a model may write each choice: with a space before it, and without.

    If a sequence is the beginning of one of another choice, all of them end with a token that ends an answer. Else
    "no" would be at least as probable as "no idea".
    """
    context = language.render_chat([{"role": "user", "content": [{"type": "text", "text": "?"}]}])
    before = language.tokenize_text(context).tolist()
    found = []
    for choice in choices:
        plain = language.control_tokens.disguise(choice)
        whole = [language.tokenize_text(context + space + plain).tolist() for space in ("", " ")]
        # A tokenizer may join the end of the context and the first letters of a choice to one token.
        variants = [tuple(ids[len(before) :]) for ids in whole if ids[: len(before)] == before]
        found.append(variants or [tuple(language.control_tokens.encode(plain))])
    is_nested = any(
        len(one) <= len(other) and other[: len(one)] == one
        for number, ones in enumerate(found)
        for others in found[:number] + found[number + 1 :]
        for one in ones
        for other in others
    )
    if is_nested:
        found = [[(*ids, stop) for ids in variants for stop in language.stop_ids] for variants in found]
    return [list(dict.fromkeys(variants)) for variants in found]


def score_choices(
    language: Any, prompts: Sequence[Prompt], choices: tuple[str, ...], prefix_caches: Sequence[PrefixCache]
) -> list[Answer]:
    """Answer prompts by the most probable of some choices.

    Args:
        language: The language half, a `BaseLanguageHalf`.
        prompts: B prompts.
        choices: The possible answers.
        prefix_caches: See `LanguageHalf.generate`.

    Returns:
        B answers with the probability of each choice. These add up to 1.
    """
    sequences = choice_sequences(language, choices)
    starts = {ids[:-1] for variants in sequences for ids in variants}
    # A pass over a sequence of tokens scores what may follow each of them.
    paths = [path for path in starts if not any(other != path and other[: len(path)] == path for other in starts)]
    if len(paths) > 1 and not prefix_caches and language.can_share_prefix:
        prefix_caches = language.read_prefixes([prompt_prefix(prompt, len(prompt.ids) - 1) for prompt in prompts])
    tokens = dict.fromkeys(token for variants in sequences for ids in variants for token in ids)
    columns = {token: column for column, token in enumerate(tokens)}
    log_probs = dict[tuple[int, Ids], list[float]]()
    rows = [(number, path) for number in range(len(prompts)) for path in paths]
    for part in batched(rows, max(len(prompts), 1)):
        numbers, forced = [number for number, _ in part], [path for _, path in part]
        steps = _forced_log_probs(
            language, [prompts[n] for n in numbers], forced, [prefix_caches[n] for n in numbers if prefix_caches]
        )
        rows_of_steps = [step[:, list(columns)].tolist() for step in steps]
        for row, (number, path) in enumerate(part):
            log_probs |= {(number, path[:length]): rows_of_steps[length][row] for length in range(len(path) + 1)}
    answers = []
    for number, prompt in enumerate(prompts):

        def score(ids: Ids, number: int = number) -> float:
            return sum(log_probs[number, ids[:end]][columns[token]] for end, token in enumerate(ids))

        scores = [torch.tensor([score(ids) for ids in variants]).logsumexp(0) for variants in sequences]
        probabilities = dict(zip(choices, torch.stack(scores).softmax(0).tolist(), strict=True))
        best = max(probabilities, key=lambda choice: probabilities[choice])
        answers.append(Answer(best, len(prompt.ids), 0, probabilities))
    return answers


def _forced_log_probs(
    language: Any, prompts: Sequence[Prompt], paths: Sequence[Ids], prefix_caches: Sequence[PrefixCache]
) -> list[Tensor]:
    """Log-probabilities of what follows each prompt and each token of its path: for each step [B, vocabulary]."""
    forced: Any = _ForcedTokens(paths, max(len(prompt.ids) for prompt in prompts))
    output = language.run_generate(
        prompts,
        prefix_caches,
        max_new_tokens=max(map(len, paths)) + 1,
        do_sample=False,
        num_beams=1,
        output_logits=True,
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([forced]),
    )
    return [logits.float().log_softmax(-1) for logits in output.logits]
