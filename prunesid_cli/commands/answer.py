"""prunesid answer: a cache and prompts in, answers out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli.commands import options as o
from prunesid_cli.commands.given import prompt_of
from prunesid_cli.commands.report import end_if_incomplete
from prunesid_cli.commands.session import Hardware, Session
from prunesid_cli.errors import CacheError, ExitCode, UsageError
from prunesid_cli.families.checkpoint import is_local
from prunesid_cli.output import advance_one, duration, plural, printer, stdout_is_terminal
from prunesid_cli.tokencache import Cache, Run, open_cache

if TYPE_CHECKING:
    from prunesid_cli.pipeline import Query, Reply


@dataclass(frozen=True)
class Prompt:
    """A prompt for every item, or for the one named `source`."""

    text: str
    source: str | None = None


def answer(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A folder that compress wrote.")],
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="A prompt, asked of everything; - reads it from stdin.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE.jsonl", help='Lines {"prompt": ...}, with "source" where one item is meant.'),
    ] = None,
    model: o.CacheModel = None,
    revision: o.CacheRevision = None,
    device: o.Device = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    attention: o.AttentionOption = o.Attention.auto,
    batch_size: o.BatchSize = 0,
    max_new_tokens: o.MaxNewTokens = 128,
    temperature: o.Temperature = 0.0,
    seed: o.Seed = 0,
    as_json: o.Json = False,
    usage: o.Usage = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:
    """Answer one prompt, or many, over everything in a cache, with neither images nor vision tower.

    The model is the cache's own. Answers are JSON, a line each, unless a person is looking.

    Example: prunesid answer cache/ "is there a person?" | jq .
    """
    printer.check()
    asked = read_prompts(prompt, prompts)
    opened = open_cache(cache)
    if opened.run is None and opened.missing.numbers:
        raise opened.missing.error
    if opened.run is None:
        hint = f"ls {cache} --failed" if opened.failures() else f"info {cache}"
        raise CacheError(f"{cache} holds no tokens", hint=f"prunesid cache {hint}")
    session = _session(opened.run, model, revision, Hardware(device, dtype, attention))
    from prunesid_cli import pipeline
    from prunesid_cli.types import Generation

    queries = list(_queries(opened, asked))
    language, began, failed = session.language(), time.perf_counter(), 0
    for text in dict.fromkeys(prompt.text for prompt in asked):
        language.check(text, 1)
    how = Generation(max_new_tokens, temperature, seed)
    with printer.progress("answering", len(queries), prints=True) as bar:
        for reply in pipeline.answer(language, queries, how, session.batch_size(batch_size)):
            failed += reply.error is not None
            _print(reply, as_json or not stdout_is_terminal())
            advance_one(bar)
    if usage:
        spent = time.perf_counter() - began
        printer.usage(f"{plural(len(queries), 'answer')} in {duration(spent)} ({len(queries) / spent:.1f}/s)")
    end_if_incomplete(opened)
    if failed:
        raise typer.Exit(ExitCode.PARTIAL)


def read_prompts(prompt: str | None, file: Path | None) -> list[Prompt]:
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
        return [Prompt(prompt_of(prompt or ""))]
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # splitlines would also cut at U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}", hint="a text file with a JSON object a line") from error
    return [_prompt(line, f"{file}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _prompt(line: str, where: str) -> Prompt:
    try:
        record = json.loads(line)
        text, source = record["prompt"], record.get("source")
    except (ValueError, KeyError, TypeError, AttributeError):
        text = source = None
    if not isinstance(text, str) or not text.strip() or not isinstance(source, str | None):
        raise UsageError(f"{where} is no prompt", hint='write {"prompt": "what is shown?"}')
    return Prompt(text, source)


def _session(run: Run, model: str | None, revision: str | None, hardware: Hardware) -> Session:
    """The cache's model, or the one named if it is the same.

    Raises:
        CacheError: the tokens are another model's, who would read them wrongly.
        UsageError: a revision of a model that has none.
    """
    own = run.revision if model is None and not is_local(run.model) else None
    chosen = Session.open(model or run.model, revision or own, hardware)
    found = chosen.checkpoint
    if found.revision != run.revision or found.model_type != run.family:
        raise CacheError(
            f"the cache holds tokens of {run.model} at {run.revision}, not of {found.name} at {found.revision}",
            hint="leave out --model and --revision, or compress again with this one",
        )
    return chosen


def _queries(cache: Cache, prompts: Iterable[Prompt]) -> Iterator[Query]:
    """Item by item, each prompt that means it.

    Raises:
        UsageError: a prompt names a source that is not in the cache.
    """
    from prunesid_cli.pipeline import Query

    prompts = list(prompts)
    for prompt in prompts:
        if prompt.source is not None and cache.find(prompt.source) is None:
            raise UsageError(f"the cache has no item {prompt.source}", hint=f"prunesid cache ls {cache.folder}")
    number = 0
    for shard, item in cache.items():
        for prompt in prompts:
            if prompt.source in (None, item.source):
                yield Query(number, prompt.text, shard, item)
                number += 1


def _print(reply: Reply, as_json: bool) -> None:
    query = reply.query
    record: dict[str, Any] = {"id": query.number, "source": query.item.source, "prompt": query.prompt}
    if reply.error or reply.answer is None:
        error = reply.error or CacheError("no answer")
        printer.error(error)
        record |= {"error": error.problem, "hint": error.hint}
    else:
        counts = {"tokens": query.item.total, "kept": query.item.kept}
        record |= {"answer": reply.answer.text} | counts | {"ms": round(reply.ms, 1)}
    if as_json:
        printer.record(record)
    elif "answer" in record:
        printer.result(f"{query.item.source}: {record['answer']}")
