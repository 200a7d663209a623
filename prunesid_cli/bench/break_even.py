"""Break-even points of pruning, computed from measured costs by sums and quotients alone."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Measured costs of one setting. All seconds are of the same items, so that quotients hold for one item.

    Attributes:
        see: Seconds to open the items and run the vision tower (and, in the stock model, the projector).
        select: Seconds to select the tokens to keep.
        first: Seconds from there to the first token of the answers.
        token: Seconds of each further token.
        visual: Visual tokens per item that the language model reads.
        write: Seconds to write the kept tokens to a cache.
        read: Seconds to read them back.
    """

    see: float
    select: float
    first: float
    token: float
    visual: float
    write: float = 0.0
    read: float = 0.0

    def answer(self, tokens: int) -> float:
        """Seconds from the kept tokens to the end of an answer of `tokens` tokens."""
        return self.first + (tokens - 1) * self.token

    def ask(self, tokens: int) -> float:
        """Seconds from the file to the end of an answer of `tokens` tokens."""
        return self.see + self.select + self.answer(tokens)


@dataclass(frozen=True)
class BreakEven:
    """The least numbers at which pruning is no slower than the stock model; None where it always is slower.

    Attributes:
        answer_tokens: Tokens of an answer. The cost of selection is saved while reading the prompt, or by each further
            token.
        visual_tokens: Visual tokens of an item before pruning. The cost of selection is saved by the dropped tokens; it
            is assumed to be constant, and the savings to grow with the number of dropped tokens.
        prompt_tokens: `visual_tokens` plus the text of the prompt.
        prompts: Prompts about one item at which compress + answer is no slower than asking the stock model each time.
        prompts_pruned: Prompts about one item at which it is no slower than asking with pruning each time, which
            encodes the item for every prompt.
    """

    answer_tokens: int | None
    visual_tokens: int | None
    prompt_tokens: int | None
    prompts: int | None
    prompts_pruned: int | None


def break_even(stock: Costs, pruned: Costs, text_tokens: int, answer_tokens: int) -> BreakEven:
    """Compute the break-even points.

    Args:
        stock: Costs of the stock model.
        pruned: Costs with pruning.
        text_tokens: Tokens of the prompt other than visual ones.
        answer_tokens: Tokens of an answer.
    """
    # A faster tower is not counted in favour of pruning.
    extra_cost = max(pruned.see - stock.see, 0) + pruned.select
    further_tokens = least_count(extra_cost - (stock.first - pruned.first), stock.token - pruned.token)
    num_dropped = max(stock.visual - pruned.visual, 1)
    saving_per_dropped = (stock.answer(answer_tokens) - pruned.answer(answer_tokens)) / num_dropped
    dropped = least_count(extra_cost, saving_per_dropped)
    visual_tokens = None if dropped is None else round(pruned.visual) + dropped
    return BreakEven(
        answer_tokens=None if further_tokens is None else further_tokens + 1,
        visual_tokens=visual_tokens,
        prompt_tokens=None if visual_tokens is None else visual_tokens + text_tokens,
        prompts=_least_prompts(pruned, stock.ask(answer_tokens), answer_tokens),
        prompts_pruned=_least_prompts(pruned, pruned.ask(answer_tokens), answer_tokens),
    )


def _least_prompts(pruned: Costs, seconds_per_prompt: float, answer_tokens: int) -> int | None:
    """Prompts about an item that make its cache worthwhile against `seconds_per_prompt` without a cache."""
    saving = seconds_per_prompt - pruned.read - pruned.answer(answer_tokens)
    count = least_count(pruned.see + pruned.select + pruned.write, saving)
    return None if count is None else max(count, 1)


def least_count(cost: float, saving: float) -> int | None:
    """Return how many savings outweigh a cost that is paid once; None if no number does."""
    if cost <= 0:
        return 0
    return math.ceil(cost / saving) if saving > 0 else None
