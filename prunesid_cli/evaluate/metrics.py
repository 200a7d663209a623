"""How right an answer is: functions of an answer and of those that are expected, from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunesid_cli.errors import UsageError

ARTICLES = {"a", "an", "the"}
SPACES = str.maketrans(string.punctuation, " " * len(string.punctuation))
YES_NO = ("yes", "no")
ESCAPE = r"of what is meant as it stands, write \\. for . in JSON, and so for ( [ { * + ? | ^ $"
VOTES = 3
"""Of ten people, so many must have given an answer for it to be wholly right (VQA, arXiv 1505.00468, Sec. 3.3)."""


@dataclass(frozen=True)
class Metric:
    """score: (answer, expected answers) -> 0 to 1."""

    score: Callable[[str, Sequence[str]], float]
    about: str

    def check(self, answers: Sequence[str], where: str) -> None:
        """Raises UsageError: it cannot score against such answers."""
        if self.score is pattern:
            for one in answers:
                try:
                    re.compile(one)
                except re.error as error:
                    raise UsageError(f"{where}: {one!r} is no regular expression: {error}", ESCAPE) from error
        if self.score is yes_no and not all(words(one)[:1] and words(one)[0] in YES_NO for one in answers):
            raise UsageError(f"{where}: the answer is neither yes nor no", "leave out the metric, or mend the answer")


def words(text: str) -> list[str]:
    """Lower case, without punctuation and articles."""
    plain = text.casefold().translate(SPACES)
    return [word for word in plain.split() if word not in ARTICLES]


def exact(answer: str, expected: Sequence[str]) -> float:
    return float(any(words(answer) == words(one) for one in expected))


def contains(answer: str, expected: Sequence[str]) -> float:
    return float(any(_within(words(one), words(answer)) for one in expected))


def _within(some: list[str], many: list[str]) -> bool:
    """Whether words follow each other in a text."""
    return any(many[at : at + len(some)] == some for at in range(len(many) - len(some) + 1))


def said_yes_no(answer: str) -> str:
    """The first yes or no of an answer; nothing where there is none."""
    return next((word for word in words(answer) if word in YES_NO), "")


def yes_no(answer: str, expected: Sequence[str]) -> float:
    return float(said_yes_no(answer) in [said_yes_no(one) for one in expected])


def vqa(answer: str, expected: Sequence[str]) -> float:
    """Of each choice of all people but one, min(1, those who said so / 3), on average."""
    same = [words(one) == words(answer) for one in expected]
    if len(expected) == 1:
        return float(same[0])
    return sum(min(1.0, (sum(same) - own) / VOTES) for own in same) / len(same)


def recall(answer: str, expected: Sequence[str]) -> float:
    """The share of expected phrases that a caption has."""
    said = words(answer)
    return sum(_within(words(one), said) for one in expected) / max(1, len(expected))


def pattern(answer: str, expected: Sequence[str]) -> float:
    return float(any(re.search(one, answer) for one in expected))


def likeness(answer: str, other: str) -> float:
    """F1 of the words of two answers."""
    ours, theirs = Counter(words(answer)), Counter(words(other))
    if not ours and not theirs:
        return 1.0
    return 2 * (ours & theirs).total() / (ours.total() + theirs.total())


METRICS = {
    "exact": Metric(exact, "the same words, but for case, punctuation and articles"),
    "contains": Metric(contains, "an expected answer is somewhere in it"),
    "yesno": Metric(yes_no, "its first yes or no"),
    "vqa": Metric(vqa, "VQA's soft accuracy, over the answers of several people"),
    "recall": Metric(recall, "the share of expected phrases that a caption has"),
    "regex": Metric(pattern, "an expected answer is a regular expression that matches"),
}


def fitting(answers: Sequence[str]) -> str:
    """The metric for answers of which none is named."""
    if answers and all(words(one) in ([YES_NO[0]], [YES_NO[1]]) for one in answers):
        return "yesno"
    return "vqa" if len(answers) >= 10 else "exact"
