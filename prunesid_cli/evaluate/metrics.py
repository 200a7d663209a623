"""Metrics: functions of an answer and the expected answers that give a score from 0 to 1."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import regex as patterns

from prunesid_cli.errors import PruneSIDError, UsageError

ARTICLES = {"a", "an", "the"}
PUNCTUATION_TO_SPACES = str.maketrans(string.punctuation, " " * len(string.punctuation))
YES_NO = ("yes", "no")
ESCAPE_HINT = r"escape special characters: in JSON, write \\. for . and the same for ( [ { * + ? | ^ $"
FULL_SCORE_VOTES = 3
"""Number of people who must have given an answer for it to score 1 (VQA, arXiv 1505.00468, Sec. 3.3)."""
MIN_VQA_ANSWERS = 10
BRACES, MAX_REPEATS = re.compile(r"\{(\d*,?\d+,?)\}"), 100_000
"""Counted repetitions of a regular expression. Nested ones multiply, and so does the memory that compiling takes."""
MAX_REGEX_SECONDS = 1.0
"""Time limit of a search for a regular expression. With nested repetitions, one can take hours."""


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        score: (answer, expected answers) -> 0 to 1.
        description: What counts as right.
    """

    score: Callable[[str, Sequence[str]], float]
    description: str

    def check(self, answers: Sequence[str], location: str) -> None:
        """Check that the metric can score against these expected answers.

        Raises:
            UsageError: It cannot.
        """
        if self.score is regex:
            for answer in answers:
                try:
                    counts = [max(map(int, re.findall(r"\d{1,9}", braces))) for braces in BRACES.findall(answer)]
                    if math.prod(counts) > MAX_REPEATS:
                        raise UsageError(f"{location}: {answer!r} repeats too often", "use smaller numbers in {}")
                    patterns.compile(answer)
                except patterns.error as error:
                    problem = f"{location}: {answer!r} is not a regular expression: {error}"
                    raise UsageError(problem, ESCAPE_HINT) from error
        if self.score is yes_no:
            for answer in answers:
                if not set(normalized_words(answer)[:1]) & set(YES_NO):
                    problem = f"{location}: the answer is neither yes nor no"
                    raise UsageError(problem, "leave out the metric, or correct the answer")


def normalized_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles."""
    plain = text.casefold().translate(PUNCTUATION_TO_SPACES)
    return [word for word in plain.split() if word not in ARTICLES]


def _contains_phrase(words: list[str], phrase: list[str]) -> bool:
    return any(words[start : start + len(phrase)] == phrase for start in range(len(words) - len(phrase) + 1))


def first_yes_no(answer: str) -> str:
    """Return the first "yes" or "no" of an answer; empty if there is none."""
    return next((word for word in normalized_words(answer) if word in YES_NO), "")


def exact(answer: str, expected: Sequence[str]) -> float:
    """1 if the answer has the words of an expected answer and no others."""
    return float(any(normalized_words(answer) == normalized_words(text) for text in expected))


def contains(answer: str, expected: Sequence[str]) -> float:
    """1 if an expected answer occurs in the answer."""
    words = normalized_words(answer)
    return float(any(_contains_phrase(words, normalized_words(text)) for text in expected))


def yes_no(answer: str, expected: Sequence[str]) -> float:
    """1 if the first yes or no of the answer is that of an expected answer."""
    return float(first_yes_no(answer) in [first_yes_no(text) for text in expected])


def vqa(answer: str, expected: Sequence[str]) -> float:
    """The soft accuracy of VQA: the mean of min(1, votes / 3) over all choices of all people but one."""
    is_same = [normalized_words(text) == normalized_words(answer) for text in expected]
    if len(expected) == 1:
        return float(is_same[0])
    votes = sum(is_same)
    return sum(min(1.0, (votes - left_out) / FULL_SCORE_VOTES) for left_out in is_same) / len(is_same)


def recall(answer: str, expected: Sequence[str]) -> float:
    """The share of expected phrases that occur in the answer."""
    words = normalized_words(answer)
    return sum(_contains_phrase(words, normalized_words(text)) for text in expected) / max(1, len(expected))


def regex(answer: str, expected: Sequence[str]) -> float:
    """1 if an expected answer, as a regular expression, matches in the answer.

    Raises:
        PruneSIDError: The search takes longer than `MAX_REGEX_SECONDS`, as with nested repetitions, or too much memory,
            as with recursion.
    """
    try:
        return float(any(patterns.search(text, answer, timeout=MAX_REGEX_SECONDS) for text in expected))
    except (TimeoutError, MemoryError, RecursionError) as error:
        problem = f"its regular expression takes longer than {MAX_REGEX_SECONDS:g} s on the answer, or too much memory"
        raise PruneSIDError(problem, "avoid repetitions within repetitions, as in (a+)+") from error


def word_f1(first: str, second: str) -> float:
    """Return the F1 score of the words of two answers."""
    first_words, second_words = Counter(normalized_words(first)), Counter(normalized_words(second))
    if not first_words and not second_words:
        return 1.0
    return 2 * (first_words & second_words).total() / (first_words.total() + second_words.total())


METRICS = {
    "exact": Metric(exact, "the same words, but for case, punctuation and articles"),
    "contains": Metric(contains, "an expected answer is somewhere in it"),
    "yesno": Metric(yes_no, "its first yes or no"),
    "vqa": Metric(vqa, "VQA's soft accuracy, over the answers of several people"),
    "recall": Metric(recall, "the share of expected phrases that a caption has"),
    "regex": Metric(regex, "an expected answer is a regular expression that matches"),
}


def choose_metric(answers: Sequence[str]) -> str:
    """Return the name of the metric for expected answers whose record names none."""
    if answers and all(normalized_words(answer) in (["yes"], ["no"]) for answer in answers):
        return "yesno"
    return "vqa" if len(answers) >= MIN_VQA_ANSWERS else "exact"
