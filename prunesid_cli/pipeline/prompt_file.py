"""The prompts of `answer`: read from a file, and matched with the items of a cache."""

from __future__ import annotations

import glob
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.glob_paths import is_glob
from prunesid_cli.inputs.text_file import check_name, check_text, parse_lines
from prunesid_cli.tokencache import Cache, Item

if TYPE_CHECKING:
    from prunesid_cli.pipeline.query import Query

EXAMPLE_LINE = '{"prompt": "what is shown?"}'
MIN_DIGEST_DIGITS = 8
"""Fewest digits of a digest that name an input."""


def matches_path(source: str, pattern: str) -> bool:
    """Whether a glob matches a path, or only its name if the glob has no slash. `*` matches slashes, too.

    "./a.png" matches the path "a.png", and not the name of a file in another folder.
    """
    if "/" not in pattern and fnmatchcase(PurePath(source).name, pattern):
        return True
    return fnmatchcase(source, pattern) or fnmatchcase(source, pattern.removeprefix("./"))


def escape_names(patterns: Iterable[str], cache: Cache) -> dict[str, str]:
    """Patterns that are the path of an item, or else the name of some -> globs that match nothing else.

    A file named like a glob, such as "photo [1].png", is a file, as in `inputs.listing`.
    """
    wanted = {pattern for pattern in patterns if is_glob(pattern) or "/" not in pattern}
    escaped = dict[str, str]()
    for source in (item.source for _, item in cache.items() if wanted):
        if source in wanted:
            escaped[source] = glob.escape(source if "/" in source else f"./{source}")
        elif (name := PurePath(source).name) in wanted:
            escaped.setdefault(name, glob.escape(name))
    return escaped


SELECTORS: dict[str, Callable[[Cache, str], object]] = {
    "source": lambda cache, name: cache.find(name),
    "digest": lambda cache, name: cache.find_by_digest_prefix(name),
    "where": lambda cache, name: any(matches_path(item.source, name) for _, item in cache.items()),
}
"""Fields of a prompt that select items -> the matching items of a cache."""


@dataclass(frozen=True)
class Prompt:
    """A prompt for all items, or for some.

    Attributes:
        text: The prompt.
        selector: A key of `SELECTORS`; empty for all items.
        name: What the selector looks for.
        line: The line of the file, from 1.
    """

    text: str
    selector: str = ""
    name: str = ""
    line: int = 0

    def selects(self, item: Item) -> bool:
        """Whether the prompt is for an item."""
        if self.selector == "source":
            return item.source == self.name
        if self.selector == "digest":
            return item.digest.startswith(self.name)
        return self.selector != "where" or matches_path(item.source, self.name)


class Prompts:
    """All prompts of a run, in order. Those that select by source or digest are found by a table, not by a scan.

    Attributes:
        all: The prompts.
        errors: The errors of lines that are left out.
    """

    def __init__(self, prompts: Sequence[Prompt], errors: Sequence[UsageError] = ()) -> None:
        self.all, self.errors = prompts, errors
        self._by_key: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._others: list[int] = []
        for number, prompt in enumerate(prompts):
            key = {"source": prompt.name, "digest": prompt.name[:MIN_DIGEST_DIGITS]}.get(prompt.selector)
            (self._others if key is None else self._by_key[prompt.selector, key]).append(number)

    @property
    def texts(self) -> list[str]:
        """The different texts, in order."""
        return list(dict.fromkeys(prompt.text for prompt in self.all))

    def with_literal_names(self, cache: Cache) -> Prompts:
        """These prompts, whose globs that are names in a cache mean these names; see `escape_names`."""
        globs = escape_names([prompt.name for prompt in self.all if prompt.selector == "where"], cache)
        prompts = [
            replace(prompt, name=globs.get(prompt.name, prompt.name)) if prompt.selector == "where" else prompt
            for prompt in self.all
        ]
        return Prompts(prompts, self.errors) if globs else self

    def without_refused(
        self, check: Callable[[str], object], path: Path | None
    ) -> tuple[Prompts, Sequence[UsageError]]:
        """Leaves out the prompts that a model refuses.

        Args:
            check: Raises UsageError for a prompt that the model refuses.
            path: The file of the prompts, if they come from one, for messages.

        Returns:
            The other prompts, and the errors of those that are left out. They are among the errors of the result, too.

        Raises:
            UsageError: All prompts are refused.
        """
        reasons = dict[str, UsageError]()
        for text in self.texts:
            try:
                check(text)
            except UsageError as error:
                reasons[text] = error
        refused = list[UsageError]()
        for prompt in self.all:
            if reason := reasons.get(prompt.text):
                place = f"{path}, line {prompt.line}: " if path else ""
                refused.append(UsageError(place + reason.problem, reason.hint))
        if len(refused) == len(self.all):
            raise refused[0]
        accepted = [prompt for prompt in self.all if prompt.text not in reasons]
        return (Prompts(accepted, [*self.errors, *refused]), refused) if refused else (self, ())

    @property
    def have_selectors(self) -> bool:
        return any(prompt.selector for prompt in self.all)

    def unmatched(self, cache: Cache) -> list[Prompt]:
        """Prompts that select nothing in a cache; of several that look for the same name, the first."""
        named = {(prompt.selector, prompt.name): prompt for prompt in reversed(self.all) if prompt.selector}
        return [prompt for (by, name), prompt in reversed(named.items()) if not SELECTORS[by](cache, name)]

    def about(self, item: Item) -> list[str]:
        """The different texts for an item, in order."""
        keys = ("source", item.source), ("digest", item.digest[:MIN_DIGEST_DIGITS])
        numbers = {*self._others, *(number for key in keys for number in self._by_key.get(key, ()))}
        prompts = [self.all[number] for number in sorted(numbers)]
        return list(dict.fromkeys(prompt.text for prompt in prompts if prompt.selects(item)))

    def queries(self, cache: Cache, where: Sequence[str]) -> Iterator[Query]:
        """All queries about a cache, item by item.

        Args:
            cache: The cache.
            where: Globs that an item must match, if there are any.
        """
        from prunesid_cli.pipeline.query import Query

        number = 0
        for shard, item in cache.items():
            if not where or any(matches_path(item.source, pattern) for pattern in where):
                for text in self.about(item):
                    yield Query(number, text, shard, item)
                    number += 1


def read_prompt_file(path: Path) -> Prompts:
    """Reads a JSONL file of prompts. Lines that cannot be read are among the errors of the result.

    Raises:
        UsageError: The file cannot be read, or it has no prompt.
    """
    return Prompts(*parse_lines(path, _parse_line, "prompt", EXAMPLE_LINE))


def _parse_line(line: str, place: str, number: int) -> Prompt:
    try:
        record = json.loads(line)
        text, names = record["prompt"], {field: record[field] for field in SELECTORS if record.get(field) is not None}
    except (ValueError, KeyError, TypeError, AttributeError):
        text, names = None, {}
    if not isinstance(text, str) or not text.strip() or not all(isinstance(name, str) for name in names.values()):
        raise UsageError(f"{place} is not a prompt", hint=f"write {EXAMPLE_LINE}")
    check_text(text, place, "the prompt")
    if unknown := sorted(record.keys() - {"prompt", *SELECTORS}):  # with a misspelt field it would be for all items
        raise UsageError(f"{place} has an unknown field '{unknown[0]}'", f"known: prompt, {', '.join(SELECTORS)}")
    if len(names) > 1:
        raise UsageError(f"{place} names items by {' and by '.join(names)}", "leave out all but one")
    selector, name = next(iter(names.items()), ("", ""))
    check_name(name, place)
    if selector == "digest":
        name = name.lower()
        if not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGEST_DIGITS},64}}", name):
            hint = f"at least {MIN_DIGEST_DIGITS} of its hex digits: prunesid cache ls --json"
            raise UsageError(f"{place}: {name} is not a digest", hint)
    return Prompt(text, selector, name, number)
