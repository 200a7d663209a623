"""Did you mean: of words that are known, the one that a mistyped word is most like."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LIKE = 0.7
"""Share of letters that two words must have in common, from 0 to 1."""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """None: it is like none of them. Upper case and hyphens are no difference."""
    folded = {_folded(one): one for one in known}
    found = get_close_matches(_folded(word), folded, 1, LIKE)
    return folded[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """A hint: the word that was meant, where one is near, and in any case what else helps."""
    found = nearest(word, known)
    return f"did you mean {found}? {otherwise}" if found else otherwise


def _folded(word: str) -> str:
    return word.lower().replace("-", "_")
