"""The prompts of `answer`: read from a file, and matched with the items of a cache.

A file has a prompt in each line (.txt), or a table with a column `prompt` (.csv), or else a JSON object in each line.
Columns `source`, `digest` and `where` select items. Others, such as the user's own `id`, are copied to the answers.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from prunesid_cli.errors import UsageError
from prunesid_cli.inputs.glob_paths import is_glob, matches_path
from prunesid_cli.inputs.text_file import check_name, check_text, decode_text, parse_lines, read_text_file
from prunesid_cli.text import nearest
from prunesid_cli.tokencache import Cache, Item, Shard

if TYPE_CHECKING:
    from prunesid_cli.pipeline.query import Query

EXAMPLE_LINE = '{"prompt": "what is shown?"}'
ANSWER_FIELDS = ("answer", "error", "hint", "tokens", "kept", "ms", "p", "sampling", "by", "fields", "columns")
"""Fields of an answer that a prompt may not have. An `id` of the user replaces the number of the answer."""
MIN_DIGEST_DIGITS = 8
"""Fewest digits of a digest that name an input."""


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
        fields: What the user wrote beside it, which is copied to its answers.
    """

    text: str
    selector: str = ""
    name: str = ""
    line: int = 0
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str]:
        """Equal for prompts whose answers about an item would be the same records."""
        return self.text, json.dumps(self.fields, sort_keys=True)

    def selects(self, item: Item) -> bool:
        """Whether the prompt is for an item."""
        if self.selector == "source":
            return item.source == self.name
        if self.selector == "digest":
            return item.digest.startswith(self.name)
        return self.selector != "where" or matches_path(item.source, self.name)


@dataclass(frozen=True)
class ItemFilter:
    """Which items of a cache are asked about.

    Attributes:
        where: Globs that an item must match, if there are any.
        exclude: Globs that it must not match.
        max_items: How many of them are taken, the first ones; None: all.
    """

    where: Sequence[str] = ()
    exclude: Sequence[str] = ()
    max_items: int | None = None

    def items(self, cache: Cache) -> Iterator[tuple[Shard, Item]]:
        """The chosen items, with their shards."""

        def is_chosen(source: str) -> bool:
            is_included = not self.where or any(matches_path(source, pattern) for pattern in self.where)
            return is_included and not any(matches_path(source, pattern) for pattern in self.exclude)

        return islice(((shard, item) for shard, item in cache.items() if is_chosen(item.source)), self.max_items)


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

    def about(self, item: Item) -> list[Prompt]:
        """The different prompts for an item, in order."""
        keys = ("source", item.source), ("digest", item.digest[:MIN_DIGEST_DIGITS])
        numbers = {*self._others, *(number for key in keys for number in self._by_key.get(key, ()))}
        different = dict[tuple[str, str], Prompt]()
        for prompt in (self.all[number] for number in sorted(numbers)):
            if prompt.selects(item):
                different.setdefault(prompt.key, prompt)
        return list(different.values())

    def queries(self, cache: Cache, chosen: ItemFilter) -> Iterator[Query]:
        """All queries about the chosen items of a cache, item by item."""
        from prunesid_cli.pipeline.query import Query

        number = 0
        for shard, item in chosen.items(cache):
            for prompt in self.about(item):
                yield Query(number, prompt.text, shard, item, prompt.fields, answer_columns(item))
                number += 1


def answer_columns(item: Item) -> dict[str, Any]:
    """What the answers about an item have of its columns. Columns with the name of another field get another one."""
    columns = dict[str, Any]()
    for name, value in item.columns:
        is_taken = name in (*ANSWER_FIELDS, "source", "prompt", "digest") or (
            name == "id" and not isinstance(value, str | int | float)
        )
        columns[f"input_{name}" if is_taken else name] = value
    return columns


def read_prompt_file(path: Path) -> Prompts:
    """Reads a file of prompts. Lines that cannot be read are among the errors of the result.

    Raises:
        UsageError: The file cannot be read, or it has no prompt.
    """
    return parse_prompts(read_text_file(path, EXAMPLE_LINE), str(path), path.suffix.lower())


def parse_prompts(data: bytes, name: str, suffix: str) -> Prompts:
    """Reads prompts as `read_prompt_file` does.

    Args:
        data: The text.
        name: Its file, for messages.
        suffix: ".txt", ".csv" or ".jsonl".
    """
    if suffix == ".csv":
        return _parse_table(decode_text(data, name), name)
    if suffix == ".txt":
        return Prompts(*parse_lines(data, name, _parse_text, "prompt", "what is shown?"))
    return Prompts(*parse_lines(data, name, _parse_json, "prompt", EXAMPLE_LINE))


def _parse_text(line: str, place: str, number: int) -> Prompt:
    check_text(line, place, "the prompt")
    return Prompt(line.strip(), line=number)


def _parse_json(line: str, place: str, number: int) -> Prompt:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise UsageError(f"{place} is not a prompt", f"write {EXAMPLE_LINE}; or name a file of plain lines .txt")
    return _make_prompt(record, place, number)


def _parse_table(text: str, name: str) -> Prompts:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    prompts, errors = list[Prompt](), list[UsageError]()
    try:
        if "prompt" not in (reader.fieldnames or ()):
            hint = "its first line has the names of the columns: prompt, source"
            raise UsageError(f"{name} has no column 'prompt'", hint)
        for row in reader:
            place = f"{name}, line {reader.line_num}"
            if None in row or None in row.values():
                errors.append(UsageError(f"{place} has another number of columns", "put texts with commas in quotes"))
                continue
            record = {column: value for column, value in row.items() if value or column not in SELECTORS}
            try:
                prompts.append(_make_prompt(record, place, reader.line_num))
            except UsageError as error:
                errors.append(error)
    except csv.Error as error:
        raise UsageError(f"{name}, line {reader.line_num}: {error}", "put texts with line breaks in quotes") from error
    if not prompts:
        raise errors[0] if errors else UsageError(f"{name} has no prompt", "write a line for each prompt")
    return Prompts(prompts, errors)


def _make_prompt(record: Mapping[str, Any], place: str, number: int) -> Prompt:
    """A prompt from the fields of a line."""
    text = record.get("prompt")
    names = {selector: record[selector] for selector in SELECTORS if record.get(selector) is not None}
    if isinstance(text, str) and not text.strip():
        raise UsageError(f"{place} has an empty prompt", "write a prompt, or remove the line")
    if not isinstance(text, str) or not all(isinstance(name, str) for name in names.values()):
        raise UsageError(f"{place} is not a prompt", hint=f"write {EXAMPLE_LINE}")
    check_text(text, place, "the prompt")
    known = ("prompt", *SELECTORS)
    fields = {name: value for name, value in record.items() if name not in known}
    if not isinstance(fields.get("id", ""), str | int | float):
        raise UsageError(f"{place}: its id is neither a text nor a number", 'write {"id": 1, "prompt": ...}')
    for name in fields:
        if name in ANSWER_FIELDS:
            raise UsageError(f"{place} has a field '{name}', which answers have, too", "give it another name")
        if match := nearest(name, known):  # a prompt whose selector is misspelt would be for all items
            problem = f"{place} has a field '{name}', which is nearly '{match}'"
            raise UsageError(problem, "correct it, or give it another name")
    if len(names) > 1:
        raise UsageError(f"{place} names items by {' and by '.join(names)}", "leave out all but one")
    selector, name = next(iter(names.items()), ("", ""))
    check_name(name, place)
    if selector == "digest":
        name = name.lower()
        if not re.fullmatch(rf"[0-9a-f]{{{MIN_DIGEST_DIGITS},64}}", name):
            hint = f"at least {MIN_DIGEST_DIGITS} of its hex digits: prunesid cache ls --json"
            raise UsageError(f"{place}: {name} is not a digest", hint)
    return Prompt(text, selector, name, number, fields)
