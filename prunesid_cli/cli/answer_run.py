"""What answer does with queries: asks those that are not answered yet, prints or keeps what is said, and counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunesid_cli.cli.terminal import advance_one, printer, stdout_is_terminal
from prunesid_cli.errors import CacheError
from prunesid_cli.pipeline.session import Session
from prunesid_cli.runtime.shutdown import StopRequest, graceful_shutdown
from prunesid_cli.text import format_duration, plural
from prunesid_cli.tokencache import Run

if TYPE_CHECKING:
    from prunesid_cli.pipeline.answer import Query, Reply
    from prunesid_cli.pipeline.answer_file import AnswerFile
    from prunesid_cli.types import Generation


@dataclass
class Report:
    """What became of the queries: answers on stdout, unless only a file is to have them; `began`: when the first was
    asked."""

    as_json: bool
    prints: bool
    began: float = 0.0
    answers: int = 0
    failed: int = 0

    def take(self, reply: Reply, record: dict[str, Any]) -> None:
        self.answers += 1
        if reply.error:
            self.failed += 1
            printer.error(reply.error)
        if self.as_json or (self.prints and not stdout_is_terminal()):
            printer.record(record)
        elif self.prints and reply.answer:
            printer.result(f"{reply.query.item.source}: {reply.answer.text}")

    def speed(self) -> str:
        spent = time.perf_counter() - self.began
        return f"{plural(self.answers, 'answer')} in {format_duration(spent)} ({self.answers / spent:.1f}/s)"


@dataclass(frozen=True)
class Job:
    session: Session
    texts: Collection[str]
    generation: Generation
    batch_size: int
    report: Report

    def answer(self, queries: Iterable[Query], total: int | None, file: AnswerFile | None = None) -> None:
        """Load the model, and answer; refused prompts are found before any is asked."""
        from prunesid_cli.pipeline import answer as answering

        language = self.session.language()
        for text in self.texts:
            language.check_prompt(text, 1)
        self.report.began = time.perf_counter()
        prints = self.report.prints or self.report.as_json
        # Without a file there is nothing to finish a batch for.
        interrupts = graceful_shutdown() if file else nullcontext(StopRequest())
        with interrupts as stop, printer.progress("answering", total, prints=prints) as bar:
            for replies in answering.answer(language, queries, self.generation, self.batch_size):
                records = [_record(reply) for reply in replies]
                if file:
                    inputs = [_input(reply.query) for reply in replies]
                    file.append([record | own for record, own in zip(records, inputs, strict=True)])
                for reply, record in zip(replies, records, strict=True):
                    self.report.take(reply, record)
                    advance_one(bar)
                stop.raise_if_requested()

    def answer_into(self, path: Path, by: str, queries: Callable[[], Iterator[Query]], forget: bool) -> None:
        """Ask what a file does not answer yet, and say what came of it; `forget` what else it answers."""
        from prunesid_cli.pipeline.answer_file import open_answers

        with open_answers(path, by) as file:
            found = file.progress(queries(), forget)
            file.append([])
            left = found.total - found.answered
            if left:
                self.answer(file.missing(queries()), left, file)
            if not found.in_order:
                file.arrange(queries())
        parts = [self.report.speed()] if left else [f"all of {plural(found.total, 'answer')} were there"]
        parts += [f"{found.answered:,} were there"] if left and found.answered else []
        parts += [f"let go of {plural(found.others, 'answer')} to what is not asked"] if found.others else []
        parts += [f"{self.report.failed:,} failed: the same command asks them again"] if self.report.failed else []
        printer.note("   ".join([*parts, str(path)]))


def _record(reply: Reply) -> dict[str, Any]:
    query = reply.query
    record: dict[str, Any] = {"id": query.number, "source": query.item.source, "prompt": query.prompt}
    if reply.answer is None:
        error = reply.error or CacheError("no answer")
        return record | {"error": error.problem, "hint": error.hint}
    counts = {"tokens": query.item.layout.total, "kept": query.item.kept}
    return record | {"answer": reply.answer.text} | counts | {"ms": round(reply.ms, 1)}


def _input(query: Query) -> dict[str, str]:
    """What tells an input, and for a clip its frames, from others under the same name."""
    sampling = {"sampling": query.item.sampling} if query.item.sampling else {}
    return {"digest": query.item.digest} | sampling


def made_by(run: Run, generation: Generation) -> str:
    """What an answer depends on besides the prompt and the input, in words: of two runs, the same or not."""
    stored = f" stored as {run.store}" if run.store != "model" else ""
    kept = f"{run.method} {run.keep}{', dynamic' * run.dynamic}{', even' * run.even}, {run.dtype}{stored}"
    decoding = (
        f"temperature {generation.temperature:g}, seed {generation.seed}" if generation.temperature > 0 else "greedy"
    )
    return f"{run.model} at {run.revision}, {kept}; {generation.max_new_tokens} new tokens, {decoding}"
