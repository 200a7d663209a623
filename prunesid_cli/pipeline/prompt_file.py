"""The prompts that answer is given, and which items of a cache each of them means."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from prunesid_cli.cli.arguments import prompt_of
from prunesid_cli.errors import UsageError
from prunesid_cli.tokencache import Cache, Item

if TYPE_CHECKING:
    from prunesid_cli.pipeline.answer import Query

DIGITS = 8
"""Of a digest, the fewest that name an input."""

FOUND: dict[str, Callable[[Cache, str], object]] = {
    "source": lambda cache, name: cache.find(name),
    "digest": lambda cache, name: cache.find_by_digest_prefix(name),
    "where": lambda cache, name: any(matches(item.source, name) for _, item in cache.items()),
}
"""How a line of a file of prompts can say which items it means -> what a cache has of those."""


@dataclass(frozen=True)
class Prompt:
    """A prompt for every item, or for those that `name` means, read as `by` says: a key of FOUND. `line`: of the file
    that it stands in."""

    text: str
    by: str = ""
    name: str = ""
    line: int = 0


def matches(source: str, pattern: str) -> bool:
    """A glob is meant of the whole path, without a slash of its last part, too; `*` stands for slashes as well."""
    return fnmatchcase(source, pattern) or ("/" not in pattern and fnmatchcase(PurePath(source).name, pattern))


class Prompts:
    """All prompts of a run, in order, found by item."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.all = prompts
        self._named: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._others: list[int] = []
        for number, prompt in enumerate(prompts):
            key = {"source": prompt.name, "digest": prompt.name[:DIGITS]}.get(prompt.by)
            (self._others if key is None else self._named[prompt.by, key]).append(number)

    @property
    def texts(self) -> dict[str, None]:
        """Each once, in order."""
        return dict.fromkeys(prompt.text for prompt in self.all)

    @property
    def are_named(self) -> bool:
        """Whether some mean certain items alone."""
        return any(prompt.by for prompt in self.all)

    def unmatched(self, cache: Cache) -> list[Prompt]:
        """Those that name what is not in the cache, of several with the same name the first."""
        named = {(prompt.by, prompt.name): prompt for prompt in reversed(self.all) if prompt.by}
        return [one for (by, name), one in reversed(named.items()) if not FOUND[by](cache, name)]

    def about(self, item: Item) -> list[str]:
        """The texts that mean an item, each once, in the order in which they were given."""
        named = self._named.get(("source", item.source), []), self._named.get(("digest", item.digest[:DIGITS]), [])
        numbers = sorted({*self._others, *named[0], *named[1]})
        return list(dict.fromkeys(self.all[number].text for number in numbers if _means(self.all[number], item)))

    def queries(self, cache: Cache, where: Sequence[str]) -> Iterator[Query]:
        """Item by item, those that match one of the globs if there are any, and of each the prompts about it."""
        from prunesid_cli.pipeline.answer import Query

        number = 0
        for shard, item in cache.items():
            if not where or any(matches(item.source, pattern) for pattern in where):
                for text in self.about(item):
                    yield Query(number, text, shard, item)
                    number += 1


def _means(prompt: Prompt, item: Item) -> bool:
    if prompt.by == "digest":
        return item.digest.startswith(prompt.name)
    return prompt.by != "where" or matches(item.source, prompt.name)


def read_prompts(prompt: str | None, file: Path | None) -> Prompts:
    """The prompt, or those of a JSONL file.

    Raises:
        UsageError: none or both were given, or a line cannot be read.
    """
    if prompt is not None and file is not None:
        raise UsageError("answer takes a prompt or --prompts, not both", "leave out one of them")
    if prompt is None and file is None:
        raise UsageError(
            "answer needs a prompt, or --prompts FILE.jsonl", hint='prunesid answer cache/ "what is shown?"'
        )
    if file is None:
        return Prompts([Prompt(prompt_of(prompt or ""))])
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # splitlines would also cut at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}", hint="a text file with a JSON object a line") from error
    found = [_prompt(line, file, number) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UsageError(f"{file} holds no prompt", hint='write a line {"prompt": "what is shown?"}')
    return Prompts(found)


def _prompt(line: str, file: Path, number: int) -> Prompt:
    where = f"{file}, line {number}"
    try:
        record = json.loads(line)
        text, names = record["prompt"], {by: record[by] for by in FOUND if record.get(by) is not None}
    except (ValueError, KeyError, TypeError, AttributeError):
        text, names = None, {}
    if not isinstance(text, str) or not text.strip() or not all(isinstance(name, str) for name in names.values()):
        raise UsageError(f"{where} is no prompt", hint='write {"prompt": "what is shown?"}')
    if unknown := sorted(record.keys() - {"prompt", *FOUND}):  # a misspelt one would ask about everything
        raise UsageError(f"{where} has an unknown field {unknown[0]!r}", f"known: prompt, {', '.join(FOUND)}")
    if len(names) > 1:
        raise UsageError(f"{where} names items by {' and by '.join(names)}", "leave out all but one")
    by, name = next(iter(names.items()), ("", ""))
    if by == "digest" and not re.fullmatch(rf"[0-9a-f]{{{DIGITS},64}}", name := name.lower()):
        raise UsageError(
            f"{where}: {name} is no digest", f"at least {DIGITS} of its hex digits: prunesid cache ls --json"
        )
    return Prompt(text, by, name, number)
