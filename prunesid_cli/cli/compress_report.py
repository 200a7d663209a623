"""What a run of compress tells: of each input, and at its end."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import typer
from rich.filesize import decimal

from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ExitCode
from prunesid_cli.text import format_duration, plural

if TYPE_CHECKING:
    from prunesid_cli.inputs.sharding import Partition
    from prunesid_cli.pipeline.compress import InputResult
    from prunesid_cli.selection.budget import Budget
    from prunesid_cli.tokencache import Cache, CacheWriter


def note_if_all(budget: Budget, total: int) -> bool:
    """Say so where a budget is more than there is."""
    is_more = budget.count is not None and budget.count > total
    if is_more:
        printer.note(f"--keep {budget.count} of {total} visual tokens: all are kept")
    return is_more


def end_if_incomplete(cache: Cache) -> None:
    """Where a part of a cache is lost, what could be read was: say so, and end as a run of which inputs failed."""
    lost = [cache.missing.error] if cache.missing.numbers else []
    for error in (*lost, *cache.faults.values()):
        printer.error(error)
    if lost or cache.faults:
        raise typer.Exit(ExitCode.PARTIAL)


class Report:
    """What became of the inputs: a line of JSON each on request, and the summary at the end.

    before: items that the cache had.
    """

    def __init__(self, as_json: bool, budget: Budget, portion: Partition, retries: bool, before: int) -> None:
        self.as_json, self.budget, self.portion, self.retries = as_json, budget, portion, retries
        self.before = before
        self.began = time.perf_counter()
        self.counts: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()

    def take(self, outcome: InputResult) -> None:
        if outcome.error:
            self.counts["failed"] += 1
            printer.error(outcome.error)
            self._record(source=outcome.source, error=outcome.error.problem, hint=outcome.error.hint)
        elif outcome.entry is None:
            printer.detail(f"{outcome.source}: already in the cache")
            self.counts["held"] += 1
            self._record(source=outcome.source, held=True)
        else:
            entry = outcome.entry
            self.counts["kept"] += 1
            self.counts["clips"] += bool(entry.provenance.sampling)
            total, kept = entry.tokens.layout.total, entry.tokens.kept
            self.counts["tokens"] += total
            self.counts["tokens kept"] += kept
            printer.detail(f"{entry.source}: {kept} of {total} visual tokens")
            if not self.counts["all kept"]:  # said once
                self.counts["all kept"] += note_if_all(self.budget, total)
            for note in entry.provenance.notes:
                printer.note(f"{entry.source}: {note}")
            self._record(source=entry.source, digest=entry.provenance.digest, tokens=total, kept=kept)

    def _record(self, **values: Any) -> None:
        if self.as_json:
            printer.record(values)

    def say(self, writer: CacheWriter, is_whole: bool) -> None:
        """is_whole: all inputs came."""
        count = self.counts
        grown = len(writer.index.table) - self.before
        parts = [self._done(is_whole, count["kept"] - grown)] + [f"shard {self.portion}"] * (self.portion.count > 1)
        parts += [f"{plural(number, what)} passed over" for what, number in sorted(self.skipped.items())]
        if count["failed"]:
            parts += [f"{count['failed']:,} failed, listed by: prunesid cache ls {writer.folder} --failed"]
        is_empty = is_whole and not count["kept"] + count["held"] + count["failed"]
        # Of many machines one may well have none, and of failures there had better be none.
        say = printer.warning if is_empty and not self.retries and self.portion.count == 1 else printer.note
        say("   ".join(parts))
        if is_whole and not self.retries and writer.missing.items > count["kept"]:
            lost = f"{writer.missing.items - count['kept']:,} of the {writer.missing.items:,} items that it lacked"
            printer.warning(f"{writer.folder} goes on without {lost}: they were not among these images")
        if count["tokens"]:
            all_tokens, kept = count["tokens"], count["tokens kept"]
            stored = decimal(writer.index.size)
            printer.note(f"visual tokens {all_tokens:,} -> {kept:,} ({kept / all_tokens:.1%})   cache {stored}")

    def _done(self, is_whole: bool, changed: int) -> str:
        count, spent = self.counts, time.perf_counter() - self.began
        held = f"{count['held']:,} already in the cache"
        if is_whole and not count["kept"] + count["failed"]:
            nothing = "nothing failed before" if self.retries else "no images or clips found"
            return f"nothing to do: {held if count['held'] else nothing}"
        clips, images = count["clips"], count["kept"] - count["clips"]
        done = [plural(images, "image")] if images or not clips else []
        done += [plural(clips, "clip")] if clips else []
        done += [f"{changed:,} of them changed since,"] if changed else []
        rate = f"compressed {', '.join(done)} in {format_duration(spent)} ({count['kept'] / spent:.1f}/s)"
        return "   ".join([rate] + [held] * bool(count["held"]))
