"""prunesid answer: answers prompts from a cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.arguments import read_engine_args, read_prompt, read_settings
from prunesid_cli.cli.help import COMMON
from prunesid_cli.cli.notices import exit_if_incomplete
from prunesid_cli.cli.terminal import printer, stdout_is_terminal
from prunesid_cli.errors import CacheError, ExitCode, UsageError
from prunesid_cli.models.loading.checkpoint import Checkpoint, is_local
from prunesid_cli.pipeline.prompt_file import Prompt, Prompts, escape_names, read_prompt_file
from prunesid_cli.pipeline.session import Session, check_cache_model, find_checkpoint
from prunesid_cli.pipeline.settings import DEFAULTS, Engine, Settings
from prunesid_cli.runtime.output_file import is_stream
from prunesid_cli.runtime.shutdown import StopRequest, graceful_shutdown
from prunesid_cli.text import command_line, escape_invisible, format_duration, plural
from prunesid_cli.tokencache import Cache, Run, open_cache

if TYPE_CHECKING:
    from prunesid_cli.integrations.ray.actor import ActorSetup
    from prunesid_cli.integrations.ray.cluster import RayOptions
    from prunesid_cli.models.base import LanguageHalf
    from prunesid_cli.pipeline.answer_file import AnswerFile
    from prunesid_cli.pipeline.query import Query, Reply
    from prunesid_cli.types import Generation

    AnswerQueries = Callable[[Iterator[Query], StopRequest], Iterator[list[Reply]]]

MAX_LISTED_PROMPTS = 20
"""Prompts without items that are listed one by one."""


def answer(
    context: typer.Context,
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A folder written by compress.")],
    prompt: Annotated[
        str | None,
        typer.Argument(metavar="[PROMPT]", help="A prompt that is asked about every item. - reads it from stdin."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE.jsonl",
            help='A JSONL file with an object {"prompt": ...} for each prompt. Optional keys select items: source, '
            "digest (its first digits), where (a glob).",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where", metavar="GLOB",
            help="Ask only about items whose path matches, or whose name does if GLOB has no slash. Repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="FILE.jsonl", rich_help_panel=COMMON,
            help="Write the answers to a file. Run the same command again to continue. Add --json to print them to "
            "stdout, too.",
        ),
    ] = None,
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
    max_new_tokens: o.MaxNewTokens = DEFAULTS.max_new_tokens,
    temperature: o.Temperature = DEFAULTS.temperature,
    seed: o.Seed = DEFAULTS.seed,
    allow_special_tokens: o.AllowSpecialTokens = DEFAULTS.allow_special_tokens,
    as_json: o.Json = False,
    usage: o.Usage = False,
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
    if forget and out is None:
        raise UsageError("--forget is about answers in a file", "name the file with --out")
    settings = read_settings(context)
    if ray is None and (workers, gpus_per_worker, cpus_per_worker) != (None, None, None):
        raise UsageError("--workers, --gpus-per-worker and --cpus-per-worker are about a cluster", "add --ray auto")
    chosen_engine = EngineChoice(engine, read_engine_args(engine, engine_args or ()))
    if ray:
        from prunesid_cli.integrations.ray.cluster import RayOptions

        options = RayOptions.from_options(ray, workers, gpus_per_worker, cpus_per_worker)
        chosen_engine = replace(chosen_engine, cluster=options)
    asked = _read_prompts(cache, prompt, prompts)
    for error in asked.errors:
        printer.error(error)
    if forget and asked.errors:  # the answers to these lines would be removed
        raise UsageError("--forget needs a prompt file without errors", "correct these lines, or leave out --forget")
    opened, run = _open_cache(cache)
    asked = asked.with_literal_names(opened)
    unmatched = asked.unmatched(opened)
    literal_names = escape_names(where or (), opened)
    patterns = [literal_names.get(pattern, pattern) for pattern in where or ()]
    if next(asked.queries(opened, patterns), None) is None:
        for fault in opened.faults.values():
            raise fault
        selection = f"--where {' '.join(where)}" if where else f"{prompts}"
        raise UsageError(f"{selection}: no item of {cache}", command_line("cache", "ls", cache))
    _report_unmatched(unmatched, opened, prompts)
    if stale := opened.stale_sources():
        items = plural(len(stale), "item")
        listed_by = command_line("cache", "ls", cache, "--failed")
        printer.warning(f"{items} of an earlier version: the new one failed: {listed_by}")
    settings, checkpoint = _find_model(run, settings)
    from prunesid_cli.pipeline.answer_file import describe_answerer
    from prunesid_cli.types import Generation

    generation = Generation(max_new_tokens, temperature, seed)
    report = AnswerReport(as_json, prints=out is None)
    job = AnswerRun(settings, checkpoint, opened, patterns, generation, report, asked, prompts, chosen_engine)
    if out is None:
        knows_total = not where and not asked.have_selectors
        job.answer(len(opened) * len(asked.texts) if knows_total else None)
    else:
        answered_by = describe_answerer(run, generation, allow_special_tokens)
        job.answer_into(out, answered_by, forget)
    if usage and report.num_replies:
        printer.requested("   ".join([report.rate(), *job.usage]))
    exit_if_incomplete(opened)
    if report.num_failed or unmatched or job.prompts.errors:
        raise typer.Exit(ExitCode.PARTIAL)


def _read_prompts(cache: Path, prompt: str | None, path: Path | None) -> Prompts:
    """Raises `UsageError` unless there is either a prompt or a file."""
    if prompt is not None and path is not None:
        raise UsageError("answer takes a prompt or --prompts, not both", "leave out one of them")
    if path is not None:
        return read_prompt_file(path)
    if prompt is None:
        example = command_line("answer", cache, "what is shown?")
        raise UsageError("answer needs a prompt, or --prompts FILE.jsonl", hint=example)
    return Prompts([Prompt(read_prompt(prompt))])


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
        name = prompt.name if prompt.selector == "source" else f"{prompt.selector} {prompt.name}"
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


@dataclass
class AnswerReport:
    """Prints and counts replies.

    Attributes:
        as_json: Print JSON even on a terminal, and beside a file.
        prints: Whether answers are printed; else only a file gets them.
    """

    as_json: bool
    prints: bool
    num_replies: int = 0
    num_failed: int = 0
    start: float = field(default_factory=time.perf_counter)

    def add(self, reply: Reply) -> None:
        from prunesid_cli.pipeline.answer_file import reply_record

        self.num_replies += 1
        if reply.error:
            self.num_failed += 1
            printer.error(reply.error)
        if self.as_json or (self.prints and not stdout_is_terminal()):
            printer.record(reply_record(reply))
        elif self.prints and reply.answer:
            printer.result(f"{escape_invisible(reply.query.item.source)}: {reply.answer.text}")

    def rate(self) -> str:
        seconds = time.perf_counter() - self.start
        answers = plural(self.num_replies, "answer")
        return f"{answers} in {format_duration(seconds)} ({self.num_replies / seconds:.1f}/s)"


@dataclass(frozen=True)
class EngineChoice:
    """What runs the language model, its arguments, and the cluster on which it runs, if it does."""

    name: Engine
    arguments: Mapping[str, Any]
    cluster: RayOptions | None = None


@dataclass
class AnswerRun:
    """Answers prompts with the model of a session.

    Attributes:
        settings: Where the model runs.
        checkpoint: The model. It is loaded if there is a query to answer.
        cache: What the prompts are about.
        where: Globs that an item must match, if there are any.
        generation: How to decode.
        report: Prints the answers.
        prompts: The prompts; once the model is loaded, without those that it refuses.
        path: The file that they come from, if they do.
        engine: What runs the language model.
        usage: What the engine says of its work, after it.
    """

    settings: Settings
    checkpoint: Checkpoint
    cache: Cache
    where: Sequence[str]
    generation: Generation
    report: AnswerReport
    prompts: Prompts
    path: Path | None
    engine: EngineChoice
    usage: list[str] = field(default_factory=list)

    def queries(self) -> Iterator[Query]:
        """All queries, item by item."""
        return self.prompts.queries(self.cache, self.where)

    def answer(self, total: int | None, file: AnswerFile | None = None) -> None:
        """Loads the language half and answers the queries. Prompts that it refuses are found before any is answered.

        Args:
            total: Number of queries, if it is known.
            file: Where to append the answers. Queries that have one there are not asked.

        Raises:
            UsageError: The model refuses all prompts.
        """
        session = Session.open(self.settings, self.checkpoint)
        language, answer = self._load_engine(session)
        self.prompts, refused = self.prompts.without_refused(lambda text: language.check_prompt(text, 1), self.path)
        for error in refused:
            printer.error(error)
        queries = file.unanswered(self.queries()) if file else self.queries()
        self.report.start = time.perf_counter()
        prints_results = self.report.prints or self.report.as_json
        # Without a file, an interruption need not wait for the end of the batch.
        interruptible = graceful_shutdown() if file else nullcontext(StopRequest())
        with interruptible as stop, printer.progress("answering", total, prints_results) as bar:
            for replies in answer(queries, stop):
                if file:
                    file.append(replies)
                for reply in replies:
                    self.report.add(reply)
                    bar.advance()
                stop.raise_if_requested()
            stop.raise_if_requested()  # a cluster gives no more replies then

    def _load_engine(self, session: Session) -> tuple[LanguageHalf, AnswerQueries]:
        """Loads the language half, and returns it with the function that answers queries."""
        if self.engine.cluster:
            from prunesid_cli.integrations.ray.answer import AnswerSetup, answer_on_cluster

            def make_setup(machine: ActorSetup) -> AnswerSetup:
                folder = str(self.cache.folder)
                return AnswerSetup(machine, folder, self.generation, self.engine.name, self.engine.arguments)

            return session.load_language(has_layers=False), partial(
                answer_on_cluster, self.engine.cluster, session, make_setup
            )
        if self.engine.name is Engine.vllm:
            from prunesid_cli.integrations.vllm.engine import VllmEngine

            engine = VllmEngine(session, self.generation, self.engine.arguments)
            self.usage = engine.usage
            return engine.language, lambda queries, stop: engine.answer(queries)
        from prunesid_cli.pipeline.answer import answer

        language = session.load_language()
        batch_sizes = session.answer_batch_size()
        return language, lambda queries, stop: answer(language, queries, self.generation, batch_sizes)

    def answer_into(self, path: Path, answered_by: str, forget: bool) -> None:
        """Answers the queries that have no answer in a file yet, and prints a summary.

        Args:
            path: The file.
            answered_by: What the answers are made by.
            forget: Whether to remove answers to other queries.
        """
        from prunesid_cli.pipeline.answer_file import open_answers

        with open_answers(path, answered_by) as file:
            progress = file.progress(self.queries(), forget)
            file.append([])
            num_left = progress.num_queries - progress.num_answered
            if num_left:
                self.answer(num_left, file)
            if not progress.is_sorted:
                file.sort(self.queries())
        parts = [self.report.rate()] if num_left else [f"all of {plural(progress.num_queries, 'answer')} were there"]
        parts += [f"{progress.num_answered:,} were there"] if num_left and progress.num_answered else []
        parts += [f"removed {plural(progress.num_others, 'answer')} to other prompts"] if progress.num_others else []
        if self.report.num_failed:
            parts.append(f"{self.report.num_failed:,} failed: the same command asks them again")
        printer.note("   ".join([*parts, str(path)]))
