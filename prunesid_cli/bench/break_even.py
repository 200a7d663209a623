"""From where on pruning pays, by what was measured: sums and quotients alone."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Costs:
    """Seconds of one setting. All are of the same items at once, so that quotients are of one item.

    see      an item, opened and through the tower (of the stock model: and projected)
    select   what to keep of it
    first    from then on to the first token of an answer
    token    each further token
    visual   visual tokens of an item that the language model reads
    write, read  of a cache, where there is one
    """

    see: float
    select: float
    first: float
    token: float
    visual: float
    write: float = 0.0
    read: float = 0.0

    def answer(self, tokens: int) -> float:
        """From what is kept to the end of an answer of so many tokens."""
        return self.first + (tokens - 1) * self.token

    def asking(self, tokens: int) -> float:
        """One prompt about an item, from its file on."""
        return self.see + self.select + self.answer(tokens)


@dataclass(frozen=True)
class BreakEven:
    """Each the least number at which pruning is no slower than the stock model; None: it never is, by these figures.

    answer_tokens   tokens of an answer: what selection takes is saved in reading the prompt, or by each further token
    visual_tokens   of an item before pruning: what selection takes is saved by the dropped ones (it is taken to stay as
                    it is, and what is saved to grow with their number)
    prompt_tokens   the same with the text of the prompt
    prompts         about one item, where compress + answer takes on the stock model asked each of them
    prompts_pruned  the same, where it takes on asking with pruning, the item seen anew for each prompt
    """

    answer_tokens: int | None
    visual_tokens: int | None
    prompt_tokens: int | None
    prompts: int | None
    prompts_pruned: int | None


def break_even(stock: Costs, pruned: Costs, text: int, tokens: int) -> BreakEven:
    """text: tokens of the prompt beside the visual ones; tokens: of an answer."""
    before = max(pruned.see - stock.see, 0) + pruned.select  # a tower that is faster is not to pruning's credit
    later = least(before - (stock.first - pruned.first), stock.token - pruned.token)
    a_token = (stock.answer(tokens) - pruned.answer(tokens)) / max(stock.visual - pruned.visual, 1)
    dropped = least(before, a_token)
    visual = None if dropped is None else round(pruned.visual) + dropped
    return BreakEven(
        answer_tokens=None if later is None else later + 1,
        visual_tokens=visual,
        prompt_tokens=None if visual is None else visual + text,
        prompts=_prompts(pruned, stock.asking(tokens), tokens),
        prompts_pruned=_prompts(pruned, pruned.asking(tokens), tokens),
    )


def _prompts(cached: Costs, rival: float, tokens: int) -> int | None:
    """How many prompts about an item make its cache worth it, where the rival takes so many seconds for each."""
    count = least(cached.see + cached.select + cached.write, rival - cached.read - cached.answer(tokens))
    return None if count is None else max(count, 1)


def least(cost: float, saving: float) -> int | None:
    """How many times `saving` must come to make up for `cost`, paid once."""
    if cost <= 0:
        return 0
    return math.ceil(cost / saving) if saving > 0 else None
