"""What `answer` does once it knows the model and the prompts: it runs an engine, and prints or writes the answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesid_cli.cli.terminal import printer, stdout_is_terminal
from prunesid_cli.models.loading.checkpoint import Checkpoint
from prunesid_cli.pipeline.answer_table import SUFFIX as TABLE_SUFFIX
from prunesid_cli.pipeline.answer_table import lines_path, write_table
from prunesid_cli.pipeline.prompt_file import ItemFilter, Prompts
from prunesid_cli.pipeline.session import Session
from prunesid_cli.pipeline.settings import AskedBy, Engine, Settings
from prunesid_cli.runtime.output_file import is_stream
from prunesid_cli.runtime.reservoir import Reservoir
from prunesid_cli.runtime.shutdown import StopRequest, graceful_shutdown
from prunesid_cli.text import escape_invisible, format_duration, plural
from prunesid_cli.tokencache import Cache

if TYPE_CHECKING:
    from prunesid_cli.integrations.ray.actor import ActorSetup
    from prunesid_cli.integrations.ray.cluster import RayOptions
    from prunesid_cli.models.base import LanguageHalf
    from prunesid_cli.pipeline.answer_file import AnswerFile
    from prunesid_cli.pipeline.query import Query, Reply
    from prunesid_cli.types import Generation

    AnswerQueries = Callable[[Iterator[Query], StopRequest], Iterator[list[Reply]]]


SAMPLE_SIZE = 16
"""Queries that are answered to see how long others take."""


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
        chosen: Which of its items.
        generation: How to decode.
        report: Prints the answers.
        prompts: The prompts; once the model is loaded, without those that it refuses.
        path: The file that they come from, if they do.
        engine: What runs the language model.
        by: What is asked about once.
        usage: What the engine says of its work, after it.
    """

    settings: Settings
    checkpoint: Checkpoint
    cache: Cache
    chosen: ItemFilter
    generation: Generation
    report: AnswerReport
    prompts: Prompts
    path: Path | None
    engine: EngineChoice
    by: AskedBy = AskedBy.path
    usage: list[str] = field(default_factory=list)

    def queries(self) -> Iterator[Query]:
        """All queries, item by item."""
        return self.prompts.queries(self.cache, self.chosen)

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
            all_replies = answer(queries, stop)
            if self.by is AskedBy.content:
                from prunesid_cli.pipeline.distinct_queries import answer_distinct

                all_replies = answer_distinct(lambda distinct: answer(distinct, stop), queries, self.cache)
            for replies in all_replies:
                if file:
                    file.append(replies)
                for reply in replies:
                    self.report.add(reply)
                    bar.advance()
                stop.raise_if_requested()
            stop.raise_if_requested()  # a cluster gives no more replies then

    def report_plan(self, path: Path | None, answered_by: str) -> None:
        """Prints how many queries there are, and how long their answers would take by the time of a few.

        Args:
            path: The file of answers, if there is one.
            answered_by: What its answers are made by.
        """
        from prunesid_cli.pipeline.answer_file import open_answers

        num_answered, new = 0, Reservoir["Query"](SAMPLE_SIZE)
        with ExitStack() as resources:
            file = None
            if path and not is_stream(path):
                is_table = path.suffix.lower() == TABLE_SUFFIX
                file = resources.enter_context(open_answers(lines_path(path) if is_table else path, answered_by))
            for query in self.queries():
                if file and file.has(query):
                    num_answered += 1
                else:
                    new.add(query)
        record: dict[str, float] = {"new": new.count, "answered": num_answered}
        parts = [f"would answer {plural(new.count, 'prompt')} about items of {self.cache.folder}"]
        parts += [f"{num_answered:,} are answered"] if num_answered else []
        lines = ["   ".join(parts)]
        if new.count:
            sample = sorted(new.items, key=lambda query: query.number)
            _, answer = self._load_engine(Session.open(self.settings, self.checkpoint))
            for _ in answer(iter(sample[:1]), StopRequest()):  # a warm-up
                pass
            start = time.perf_counter()
            sample = [replace(query, number=number) for number, query in enumerate(sample)]
            count = sum(len(replies) for replies in answer(iter(sample), StopRequest()))
            rate = count / (time.perf_counter() - start)
            record |= {"answers_per_s": round(rate, 3), "s": round(new.count / rate)}
            seconds = format_duration(new.count / rate)
            lines.append(f"{rate:.1f}/s by the time of {plural(count, 'answer')}: about {seconds}")
        if self.report.as_json:
            printer.record(record)
        else:
            printer.result("\n".join(lines))

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

        is_table = path.suffix.lower() == TABLE_SUFFIX and not is_stream(path)
        with ExitStack() as at_end:
            file = at_end.enter_context(open_answers(lines_path(path) if is_table else path, answered_by))
            progress = file.progress(self.queries(), forget)
            file.append([])
            if is_table:
                at_end.callback(write_table, path)
            num_left = progress.num_queries - progress.num_answered
            if num_left:
                self.answer(num_left, file)
            if not progress.is_sorted:
                file.sort(self.queries())
        parts = [self.report.rate()] if num_left else [f"all of {plural(progress.num_queries, 'answer')} were there"]
        parts += [f"{progress.num_answered:,} were there"] if num_left and progress.num_answered else []
        parts += [f"removed {plural(progress.num_others, 'answer')} to other prompts"] if progress.num_others else []
        parts += [f"{plural(progress.num_staying, 'answer')} about other items stay"] if progress.num_staying else []
        if self.report.num_failed:
            parts.append(f"{self.report.num_failed:,} failed: the same command asks them again")
        printer.note("   ".join([*parts, str(path)]))
