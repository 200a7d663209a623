"""prunesid answer: answers prompts from a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.answer_run import AnswerReport, AnswerRun, EngineChoice
from prunesid_cli.cli.arguments import (
    open_stdin,
    read_choices,
    read_engine_args,
    read_prompt,
    read_schema,
    read_settings,
)
from prunesid_cli.cli.help import COMMON
from prunesid_cli.cli.input_paths import STDIN
from prunesid_cli.cli.notices import exit_if_incomplete
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import CacheError, ExitCode, UsageError
from prunesid_cli.models.loading.checkpoint import Checkpoint, is_local
from prunesid_cli.pipeline.answer_table import SUFFIX as TABLE_SUFFIX
from prunesid_cli.pipeline.prompt_file import ItemFilter, Prompt, Prompts, escape_names, parse_prompts, read_prompt_file
from prunesid_cli.pipeline.session import check_cache_model, find_checkpoint
from prunesid_cli.pipeline.settings import DEFAULTS, AskedBy, Engine, Settings
from prunesid_cli.runtime.output_file import is_stream
from prunesid_cli.text import command_line, plural
from prunesid_cli.tokencache import Cache, Run, open_cache

ANSWER_SUFFIXES = ("", ".jsonl", ".ndjson", TABLE_SUFFIX)
MAX_LISTED_PROMPTS = 20
"""Prompts without items that are listed one by one."""


def answer(
    context: typer.Context,
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A folder written by compress.")],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="A prompt that is asked about every item. - reads it from stdin."),
    ] = None,
    typed_prompts: Annotated[
        list[str] | None,
        typer.Option("-p", "--prompt", metavar="PROMPT", help="The same as PROMPT. Repeat it to ask several prompts."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE",
            help='A file of prompts: lines of text (.txt), a table (.csv), or JSON, {"prompt": ...} in each line. - '
            "reads stdin. Columns source, digest (its first digits) and where (a glob) select items. All others, such "
            "as id, are copied to the answers.",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", "--include", metavar="GLOB",
            help="Ask only about items whose path matches, or whose name does if GLOB has no slash. Repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE", rich_help_panel=COMMON,
            help="Write the answers to a file, as JSON (.jsonl) or as a table (.csv). Run the same command again to "
            "continue. Add --json to print them to stdout, too.",
        ),
    ] = None,
    exclude: o.Exclude = None,
    by: o.AskedBy = AskedBy.content,
    max_items: o.MaxItems = None,
    dry_run: o.DryRun = False,
    forget: Annotated[
        bool,
        typer.Option(
            "--forget", rich_help_panel=COMMON,
            help="Remove answers from the --out file whose prompt is not asked any more, or whose item is gone.",
        ),
    ] = False,
    model: o.CacheModel = DEFAULTS.model,
    revision: o.CacheRevision = DEFAULTS.revision,
    device: o.Device = DEFAULTS.device,
    dtype: o.Dtype = DEFAULTS.dtype,
    attention: o.Attention = DEFAULTS.attention,
    engine: o.Engine = Engine.builtin,
    engine_args: o.EngineArgs = None,
    ray: o.Ray = None,
    workers: o.ClusterWorkers = None,
    gpus_per_worker: o.GPUsPerWorker = None,
    cpus_per_worker: o.CPUsPerWorker = None,
    batch_size: o.AnswerBatchSize = DEFAULTS.batch_size,
    system: o.System = DEFAULTS.system,
    choices: o.Choices = None,
    schema: o.Schema = None,
    max_new_tokens: o.MaxNewTokens = DEFAULTS.max_new_tokens,
    temperature: o.Temperature = DEFAULTS.temperature,
    seed: o.Seed = DEFAULTS.seed,
    allow_special_tokens: o.AllowSpecialTokens = DEFAULTS.allow_special_tokens,
    as_json: o.Json = False,
    usage: o.Usage = False,
    log: o.Log = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
    debug: o.Debug = False,
) -> None:  # fmt: skip
    """Answer one or many prompts from a cache, without the images and without the vision tower.

    The model is the one that made the cache. Answers are printed as JSON, one a line, or as text if stdout is a
    terminal. With --out, prompts that have an answer in the file are not asked again. A prompt about an item that is
    not in the cache is reported; all others are answered.

    Example: prunesid answer cache/ "is there a person?" | jq .
    """
    if out is None or as_json:
        printer.check_stdout()
    printer.resumable = out is not None and not is_stream(out)
    if out and not is_stream(out) and out.suffix.lower() not in ANSWER_SUFFIXES:
        raise UsageError(f"--out {out}: answers are written as .jsonl or .csv", "name it so: --out answers.jsonl")
    if forget and out is None:
        raise UsageError("--forget is about answers in a file", "name the file with --out")
    settings = read_settings(context)
    possible, json_schema = read_choices(choices), read_schema(schema, choices)
    if ray is None and (workers, gpus_per_worker, cpus_per_worker) != (None, None, None):
        raise UsageError("--workers, --gpus-per-worker and --cpus-per-worker are about a cluster", "add --ray auto")
    chosen_engine = EngineChoice(engine, read_engine_args(engine, engine_args or ()))
    if ray:
        from prunesid_cli.integrations.ray.cluster import RayOptions

        if workers == 0:
            raise UsageError("--workers 0 leaves nothing that works on the cluster", "--workers 4, or 2-8")
        options = RayOptions.from_options(ray, workers, gpus_per_worker, cpus_per_worker)
        chosen_engine = replace(chosen_engine, cluster=options)
    asked = _read_prompts(cache, [*([prompt] if prompt is not None else []), *(typed_prompts or [])], prompts)
    for error in asked.errors:
        printer.error(error)
    if forget and asked.errors:  # the answers to these lines would be removed
        raise UsageError("--forget needs a prompt file without errors", "correct these lines, or leave out --forget")
    opened, run = _open_cache(cache)
    asked = asked.with_literal_names(opened)
    unmatched = asked.unmatched(opened)
    literal_names = escape_names(where or (), opened)
    patterns = [literal_names.get(pattern, pattern) for pattern in where or ()]
    chosen = ItemFilter(patterns, exclude or (), max_items)
    if next(asked.queries(opened, chosen), None) is None:
        for fault in opened.faults.values():
            raise fault
        filters = [f"--where {' '.join(where)}"] if where else []
        filters += [f"--exclude {' '.join(exclude)}"] if exclude else []
        selection = " ".join(filters) or f"{prompts}"
        raise UsageError(f"{selection}: no item of {cache}", command_line("cache", "ls", cache))
    _report_unmatched(unmatched, opened, prompts)
    if stale := opened.stale_sources():
        items = plural(len(stale), "item")
        listed_by = command_line("cache", "ls", cache, "--failed")
        printer.warning(f"{items} of an earlier version: the new one failed: {listed_by}")
    settings, checkpoint = _find_model(run, settings)
    from prunesid_cli.pipeline.answer_file import describe_answerer
    from prunesid_cli.types import Generation

    generation = Generation(max_new_tokens, temperature, seed, choices=possible, schema=json_schema)
    report = AnswerReport(as_json, prints=out is None)
    job = AnswerRun(settings, checkpoint, opened, chosen, generation, report, asked, prompts, chosen_engine, by)
    answered_by = describe_answerer(run, generation, allow_special_tokens, system)
    if dry_run:
        job.report_plan(out, answered_by)
    elif out is None:
        knows_total = not (where or exclude or max_items or asked.have_selectors)
        job.answer(len(opened) * len({prompt.key for prompt in asked.all}) if knows_total else None)
    else:
        job.answer_into(out, answered_by, forget)
    if usage and report.num_replies:
        printer.requested("   ".join([report.rate(), *job.usage]))
    exit_if_incomplete(opened)
    if report.num_failed or unmatched or job.prompts.errors:
        raise typer.Exit(ExitCode.PARTIAL)


def _read_prompts(cache: Path, texts: Sequence[str], path: Path | None) -> Prompts:
    """Raises `UsageError` unless there are either prompts or a file of them."""
    if texts and path is not None:
        raise UsageError("answer takes a prompt or --prompts, not both", "leave out one of them")
    if path is not None and str(path) == STDIN:
        data = open_stdin().buffer.read()
        return parse_prompts(data, "the list on stdin", ".jsonl" if data.lstrip().startswith(b"{") else ".txt")
    if path is not None:
        return read_prompt_file(path)
    if not texts:
        example = command_line("answer", cache, "what is shown?")
        raise UsageError("answer needs a prompt, or --prompts FILE", hint=example)
    return Prompts([Prompt(read_prompt(text)) for text in texts])


def _open_cache(folder: Path) -> tuple[Cache, Run]:
    """Opens a cache that has items. Raises `CacheError` if there is none."""
    cache = open_cache(folder)
    if cache.run is not None:
        return cache, cache.run
    if cache.missing.numbers:
        raise cache.missing.error
    words = ("ls", folder, "--failed") if cache.failures() else ("info", folder)
    raise CacheError(f"{folder} holds no tokens", command_line("cache", *words))


def _report_unmatched(prompts: Sequence[Prompt], cache: Cache, path: Path | None) -> None:
    """Warns about prompts whose items are not in the cache, and says why if their inputs failed."""
    errors = {record["source"]: record["error"] for record in cache.failures()} if prompts else {}
    for prompt in prompts[:MAX_LISTED_PROMPTS]:
        name = prompt.name if prompt.selector == "source" else f"with {prompt.selector} {prompt.name}"
        name = f"that {prompt.name} matches" if prompt.selector == "where" else name
        reason = f", which failed: {errors[name].removeprefix(f'{name}: ')}" if name in errors else ""
        printer.warning(f"{path}, line {prompt.line}: the cache has no item {name}{reason}")
    if len(prompts) > MAX_LISTED_PROMPTS:
        printer.warning(f"the cache has no items for {plural(len(prompts) - MAX_LISTED_PROMPTS, 'more name')}")


def _find_model(run: Run, settings: Settings) -> tuple[Settings, Checkpoint]:
    """The cache's model, or the one that was named if it is the same. No torch is imported, which would take seconds.

    Raises:
        CacheError: The tokens are those of another model.
        UsageError: A revision was named for a model that has none.
    """
    revision = settings.revision
    if revision is None and settings.model is None and not is_local(run.model):
        revision = run.revision
    settings = replace(settings, model=settings.model or run.model, revision=revision)
    checkpoint = find_checkpoint(settings)
    check_cache_model(run, checkpoint)
    return settings, checkpoint
