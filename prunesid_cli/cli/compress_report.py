"""What `compress` prints: a line for each input on request, and a summary."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.filesize import decimal

from prunesid_cli.cli.notices import note_if_all_kept, warn_if_cropped
from prunesid_cli.cli.terminal import printer
from prunesid_cli.inputs.sharding import Partition
from prunesid_cli.pipeline.results import CachedInput, CopiedInput, FailedInput
from prunesid_cli.text import command_line, format_duration, plural

if TYPE_CHECKING:
    from prunesid_cli.pipeline.compress import Result
    from prunesid_cli.selection.budget import Budget
    from prunesid_cli.tokencache import Cache, CacheWriter


@dataclass
class CompressReport:
    """Prints and counts results.

    Attributes:
        as_json: Print a JSON line for each input.
        budget: The budget, to say once if it is larger than an item.
        partition: The partition of this machine.
        num_listed: Failed inputs that the cache lists, if only they are retried; else None.
        num_items_before: Items that the cache had before.
        num_skipped: Paths that the listing skipped, by reason.
        counts: Counts of what the summary names.
        seen: Share of the area that the model sees, of each input that was cropped.
    """

    as_json: bool
    budget: Budget
    partition: Partition
    num_listed: int | None
    num_items_before: int
    num_skipped: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    seen: list[float] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def add(self, result: Result) -> None:
        """Prints and counts one result."""
        record: dict[str, object] = {"source": result.source}
        if isinstance(result, FailedInput):
            self.counts["failed"] += 1
            printer.error(result.error)
            record |= {"error": result.error.problem, "hint": result.error.hint}
        elif isinstance(result, CachedInput):
            self.counts["cached"] += 1
            printer.detail(f"{result.source}: already in the cache")
            record |= {"held": True}
        elif isinstance(result, CopiedInput):
            self.counts["copied"] += 1
            printer.detail(f"{result.source}: the contents of another input, whose tokens are used")
            record |= {"digest": result.provenance.digest, "copy": True}
        else:
            provenance, total, kept = result.provenance, result.tokens.layout.total, result.tokens.kept
            self.counts.update(encoded=1, clips=int(bool(provenance.sampling)), tokens=total, tokens_kept=kept)
            printer.detail(f"{result.source}: {kept} of {total} visual tokens")
            if not self.counts["all_kept_notes"]:
                self.counts["all_kept_notes"] += note_if_all_kept(self.budget, total)
            for note in provenance.notes:
                printer.note(f"{result.source}: {note}")
            record |= {"digest": provenance.digest, "tokens": total, "kept": kept}
            if (share := round(result.tokens.layout.visible_share, 4)) < 1:
                self.seen.append(share)
                record |= {"seen": share}
        if self.as_json:
            printer.record(record)

    def print_summary(self, writer: CacheWriter | Cache, is_complete: bool) -> None:
        """Prints what was done.

        Args:
            writer: The cache.
            is_complete: Whether no one asked to stop before the inputs ended.
        """
        counts, folder = self.counts, writer.folder
        if self.seen:
            warn_if_cropped(self.seen, counts["encoded"])
        parts = [self._work_done(is_complete, len(writer.index.table) - self.num_items_before)]
        parts += [f"partition {self.partition}"] if self.partition.count > 1 else []
        parts += [f"{plural(number, reason)} skipped" for reason, number in sorted(self.num_skipped.items())]
        if counts["failed"]:
            parts.append(f"{counts['failed']:,} failed, listed by: {command_line('cache', 'ls', folder, '--failed')}")
        names = ("encoded", "cached", "copied", "failed")
        found_nothing = is_complete and not any(counts[name] for name in names)
        # A partition may well be empty, and so may the list of failures.
        is_suspicious = found_nothing and self.num_listed is None and self.partition.count == 1
        (printer.warning if is_suspicious else printer.note)("   ".join(parts))
        num_lost = writer.missing.items - counts["encoded"]
        if is_complete and self.num_listed is None and num_lost > 0:
            printer.warning(
                f"{folder} is missing {num_lost:,} of the {writer.missing.items:,} items of its lost shards: they are "
                "not among these inputs"
            )
        if counts["tokens"]:
            total, kept = counts["tokens"], counts["tokens_kept"]
            size = decimal(writer.index.size)
            printer.note(f"visual tokens {total:,} -> {kept:,} ({kept / total:.1%})   cache {size}")

    def _work_done(self, is_complete: bool, num_new: int) -> str:
        counts, seconds = self.counts, time.perf_counter() - self.start
        cached = f"{counts['cached']:,} already in the cache"
        if is_complete and not counts["encoded"] + counts["copied"] + counts["failed"]:
            nothing = "no images or clips found" if self.num_listed is None else "no failed inputs are listed"
            if self.num_listed:
                nothing = f"none of {plural(self.num_listed, 'failed input')} is among these paths"
            return f"nothing to do: {cached if counts['cached'] else nothing}"
        if counts["copied"] and not counts["encoded"]:
            copies = plural(counts["copied"], "input")
            added = f"added {copies} with the contents of others in {format_duration(seconds)}"
            return f"{added}   {cached}" if counts["cached"] else added
        num_clips, num_images = counts["clips"], counts["encoded"] - counts["clips"]
        done = [plural(num_images, "image")] if num_images or not num_clips else []
        done += [plural(num_clips, "clip")] if num_clips else []
        if num_changed := counts["encoded"] + counts["copied"] - num_new:
            done.append(f"{num_changed:,} of them changed since,")
        if not counts["encoded"]:
            nothing = f"compressed nothing in {format_duration(seconds)}"
            return f"{nothing}   {cached}" if counts["cached"] else nothing
        rate = f"compressed {', '.join(done)} in {format_duration(seconds)} ({counts['encoded'] / seconds:.1f}/s)"
        rest = [cached] if counts["cached"] else []
        rest += [f"{counts['copied']:,} with the contents of others"] if counts["copied"] else []
        return "   ".join([rate, *rest])
