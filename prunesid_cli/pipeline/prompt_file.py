"""The prompts of `answer`: read from a file, and matched with the items of a cache."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from prunesid_cli.errors import UsageError
from prunesid_cli.tokencache import Cache, Item

if TYPE_CHECKING:
    from prunesid_cli.pipeline.answer import Query

MIN_DIGEST_DIGITS = 8
"""Fewest digits of a digest that name an input."""


def matches_path(source: str, pattern: str) -> bool:
    """Whether a glob matches a path, or only its name if the glob has no slash. `*` matches slashes, too."""
    return fnmatchcase(source, pattern) or ("/" not in pattern and fnmatchcase(PurePath(source).name, pattern))


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
    """All prompts of a run, in order. Those that select by source or digest are found by a table, not by a scan."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.all = prompts
        self._by_key: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._others: list[int] = []
        for number, prompt in enumerate(prompts):
            key = {"source": prompt.name, "digest": prompt.name[:MIN_DIGEST_DIGITS]}.get(prompt.selector)
            (self._others if key is None else self._by_key[prompt.selector, key]).append(number)

    @property
    def texts(self) -> list[str]:
        """The different texts, in order."""
        return list(dict.fromkeys(prompt.text for prompt in self.all))

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
        from prunesid_cli.pipeline.answer import Query

        number = 0
        for shard, item in cache.items():
            if not where or any(matches_path(item.source, pattern) for pattern in where):
                for text in self.about(item):
                    yield Query(number, text, shard, item)
                    number += 1


def read_prompt_file(path: Path) -> Prompts:
    """Reads a JSONL file of prompts.

    Raises:
        UsageError: The file or a line of it cannot be read, or there is no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # splitlines would also split at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="a text file with a JSON object a line") from error
    prompts = [_parse_line(line, path, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UsageError(f"{path} has no prompt", hint='write a line {"prompt": "what is shown?"}')
    return Prompts(prompts)


def _parse_line(line: str, path: Path, number: int) -> Prompt:
    place = f"{path}, line {number}"
    try:
        record = json.loads(line)
        text, names = record["prompt"], {field: record[field] for field in SELECTORS if record.get(field) is not None}
    except (ValueError, KeyError, TypeError, AttributeError):
        text, names = None, {}
    if not isinstance(text, str) or not text.strip() or not all(isinstance(name, str) for name in names.values()):
        raise UsageError(f"{place} is not a prompt", hint='write {"prompt": "what is shown?"}')
    if unknown := sorted(record.keys() - {"prompt", *SELECTORS}):  # with a misspelt field it would be for all items
        raise UsageError(f"{place} has an unknown field {unknown[0]!r}", f"known: prompt, {', '.join(SELECTORS)}")
    if len(names) > 1:
        raise UsageError(f"{place} names items by {' and by '.join(names)}", "leave out all but one")
    selector, name = next(iter(names.items()), ("", ""))
    if selector == "digest":
        name = name.lower()
        if not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGEST_DIGITS},64}}", name):
            hint = f"at least {MIN_DIGEST_DIGITS} of its hex digits: prunesid cache ls --json"
            raise UsageError(f"{place}: {name} is not a digest", hint)
    return Prompt(text, selector, name, number)
