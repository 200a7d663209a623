"""prunesid answer: a cache and prompts in, answers out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.answer_run import Job, Report, made_by
from prunesid_cli.cli.choices import Attention, Dtype
from prunesid_cli.cli.compress_report import end_if_incomplete
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import CacheError, ExitCode, UsageError
from prunesid_cli.models.loading.checkpoint import is_local
from prunesid_cli.pipeline.prompt_file import Prompt, read_prompts
from prunesid_cli.pipeline.session import Hardware, Session
from prunesid_cli.text import plural
from prunesid_cli.tokencache import Cache, Run, open_cache

TOLD = 20
"""Prompts about nothing that are told one by one."""


def answer(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A folder that compress wrote.")],
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="A prompt, asked of everything; - reads it from stdin.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='Lines {"prompt": ...}, with "source", "digest" (its first digits) or "where" (a glob) if not all '
            "items are meant.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="Only items whose path matches, or without a slash in GLOB their name; repeatable."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE.jsonl", rich_help_panel=o.OUTPUT,
            help="Write answers there, and go on where the same command stopped. stdout is silent without --json.",
        ),
    ] = None,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget", rich_help_panel=o.OUTPUT,
            help="Let go of answers in --out to what is not asked: other prompts, or inputs that gc let go of.",
        ),
    ] = False,
    model: o.CacheModel = None,
    revision: o.CacheRevision = None,
    device: o.Device = "auto",
    dtype: o.DtypeOption = Dtype.auto,
    attention: o.AttentionOption = Attention.auto,
    batch_size: o.BatchSize = 0,
    max_new_tokens: o.MaxNewTokens = 128,
    temperature: o.Temperature = 0.0,
    seed: o.Seed = 0,
    as_json: o.Json = False,
    usage: o.Usage = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:  # fmt: skip
    """Answer one prompt, or many, over everything in a cache, with neither images nor vision tower.

    The model is the cache's own. Answers are JSON, a line each, unless a person is looking: item by item, the prompts
    about it in their order, each once. With --out, what is answered is not asked again; what failed is. A prompt about
    an item that is not in the cache costs itself alone.

    Example: prunesid answer cache/ "is there a person?" | jq .
    """
    if out is None or as_json:
        printer.check()
    printer.resumable = out is not None
    if forget and out is None:
        raise UsageError("--forget is about answers in a file", "name it by --out")
    asked = read_prompts(prompt, prompts)
    opened, run = _opened(cache)
    unmatched = asked.unmatched(opened)
    queries = partial(asked.queries, opened, where or ())
    if next(queries(), None) is None:
        what = f"--where {' '.join(where)}" if where else f"{prompts}"
        raise UsageError(f"{what}: no item of {cache}", f"prunesid cache ls {cache}")
    _tell(unmatched, opened, prompts)
    if stale := opened.stale_sources():
        what = f"{plural(len(stale), 'item')} of an earlier version, since what is there now could not be read"
        printer.warning(f"{what}: prunesid cache ls {cache} --failed")
    session = _session(run, model, revision, Hardware(device, dtype, attention))
    from prunesid_cli.types import Generation

    generation = Generation(max_new_tokens, temperature, seed)
    job = Job(session, asked.texts, generation, session.batch_size(batch_size), Report(as_json, out is None))
    if out is None:
        is_known = not where and not asked.are_named
        job.answer(queries(), len(opened) * len(asked.texts) if is_known else None)
    else:
        job.answer_into(out, made_by(run, generation), queries, forget)
    if usage and job.report.answers:
        printer.usage(job.report.speed())
    end_if_incomplete(opened)
    if job.report.failed or unmatched:
        raise typer.Exit(ExitCode.PARTIAL)


def _tell(unmatched: Sequence[Prompt], cache: Cache, file: Path | None) -> None:
    """Which prompts are about what the cache has not, and why it has not, the first of them one by one."""
    reasons = {record["source"]: record["error"] for record in cache.failures()} if unmatched else {}
    for prompt in unmatched[:TOLD]:
        what = prompt.name if prompt.by == "source" else f"{prompt.by} {prompt.name}"
        why = f", which failed: {reasons[what].removeprefix(f'{what}: ')}" if what in reasons else ""
        printer.warning(f"{file}, line {prompt.line}: the cache has no item {what}{why}")
    if len(unmatched) > TOLD:
        printer.warning(f"and so for {plural(len(unmatched) - TOLD, 'more name')}")


def _opened(folder: Path) -> tuple[Cache, Run]:
    """A cache, and what its items have in common.

    Raises:
        CacheError: it cannot be read, or there is nothing in it that could be answered.
    """
    cache = open_cache(folder)
    if cache.run is None and cache.missing.numbers:
        raise cache.missing.error
    if cache.run is None:
        hint = f"ls {folder} --failed" if cache.failures() else f"info {folder}"
        raise CacheError(f"{folder} holds no tokens", hint=f"prunesid cache {hint}")
    return cache, cache.run


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
