"""prunesid cache: lists, describes, verifies, merges and cleans caches. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from prunesid_cli import __version__
from prunesid_cli.cli import options as o
from prunesid_cli.cli.help import PlainCommand, PlainGroup
from prunesid_cli.cli.notices import exit_if_incomplete
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import CacheError, ExitCode, UsageError
from prunesid_cli.text import command_line, escape_invisible, plural
from prunesid_cli.tokencache import open_cache, read_calibration
from prunesid_cli.tokencache.format import MAX_SHARD_ITEMS, layout_to_record

app = typer.Typer(cls=PlainGroup, no_args_is_help=True, help="List, describe, verify, merge and clean caches.")
CachePath = Annotated[Path, typer.Argument(metavar="CACHE", help="A folder written by compress.")]


@app.command("ls", cls=PlainCommand)
def list_items(
    cache: CachePath,
    failed: Annotated[bool, typer.Option("--failed", help="List the inputs that failed, with the reasons.")] = False,
    null: Annotated[
        bool, typer.Option("-0", "--null", help="Print only the names, each followed by NUL, for xargs -0.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """List the items of a cache: kept tokens / all visual tokens, size in pixels, source.

    An item is stale if its input failed since: its tokens are those of an earlier version. Control characters in names
    are escaped, except with --null and --json.
    """
    if null and as_json:
        raise UsageError("--null and --json contradict each other", "leave out one")
    opened = open_cache(cache)
    if failed:
        for failure in opened.failures():
            reason = failure["error"].removeprefix(failure["source"] + ": ")
            _print_row(failure["source"], [failure["source"], reason], failure, null, as_json)
    else:
        stale = opened.stale_sources()
        for shard, item in opened.items():
            is_stale = item.source in stale
            cells = [f"{item.kept}/{item.layout.total}", f"{item.size[0]}x{item.size[1]}", item.source]
            record = {
                "source": item.source,
                "shard": shard.path.name,
                "tokens": item.layout.total,
                "kept": item.kept,
                "stale": is_stale,
                **item.to_record(layout_to_record(item.layout)),  # as stored, without default values
                **vars(item.provenance),  # with them
                "columns": dict(item.columns),
            }
            _print_row(item.source, [*cells, "stale: failed since"] if is_stale else cells, record, null, as_json)
        if not len(opened):
            printer.note(f"{cache} is empty")
    exit_if_incomplete(opened)


def _print_row(source: str, cells: list[str], record: Mapping[str, object], null: bool, as_json: bool) -> None:
    if null:
        printer.result(source, end="\0")
    elif as_json:
        printer.record(dict(record))
    else:
        printer.result("\t".join(map(escape_invisible, cells)))


@app.command(cls=PlainCommand)
def info(cache: CachePath, as_json: o.Json = False, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """Describe a cache: model, method, number of items, size."""
    opened = open_cache(cache)
    total, kept = opened.index.table.counts.sum(0).tolist()
    facts: dict[str, object] = opened.run.to_record() if opened.run else {}
    facts = {name: value for name, value in facts.items() if as_json or value is not False}
    facts |= {
        "items": len(opened),
        "contents": opened.index.num_contents,
        "failed": len(opened.failures()),
        "stale": len(opened.stale_sources()),
    }
    facts |= {"shards": len(opened.index.shards)}
    facts |= {"missing": opened.missing.numbers} if opened.missing.numbers else {}
    facts |= {"sampling": opened.index.sampling} if opened.index.sampling else {}
    facts |= {"tokens": total, "kept": kept, "bytes": opened.index.size}
    calibration = read_calibration(cache)
    facts |= {"calibration": asdict(calibration)} if calibration else {}
    if as_json:
        printer.record(facts)
    else:
        facts |= {"bytes": decimal(opened.index.size), "kept": f"{kept} ({kept / max(total, 1):.1%})"}
        if calibration:
            facts["calibration"] = f"phi {calibration.phi:.4f}, of {plural(calibration.images, 'image')}"
        for name, value in facts.items():
            printer.result(f"{name:11} {escape_invisible(str(value))}")
    exit_if_incomplete(opened)


@app.command(cls=PlainCommand)
def verify(cache: CachePath, as_json: o.Json = False, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """Read every byte of a cache and compare it with its checksum."""
    from prunesid_cli.tokencache import verify_cache

    num_good, faults = verify_cache(cache)
    for fault in faults:
        printer.error(fault)
    if as_json:
        printer.record({"good": num_good, "faults": [fault.problem for fault in faults]})
    else:
        printer.result(f"{plural(num_good, 'item')} good, {plural(len(faults), 'fault')}")
    if faults:
        raise typer.Exit(ExitCode.FAILURE)


@app.command(cls=PlainCommand)
def merge(
    caches: Annotated[
        list[Path], typer.Argument(metavar="CACHE...", help="Folders written by compress with the same options.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="CACHE", help="The merged cache. It is created or continued.")
    ],
    shard_items: o.ShardItems = MAX_SHARD_ITEMS,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Merge the caches that several machines made with compress --shard. The caches themselves are not changed.

    Example: prunesid cache merge part-1/ part-2/ --out cache/
    """
    from prunesid_cli.tokencache import ShardLimits
    from prunesid_cli.tokencache.merge import merge
    from prunesid_cli.tokencache.partition_marker import find_partition_gaps

    result = merge(caches, out, __version__, ShardLimits(shard_items))
    if as_json:
        printer.record({"merged": result.copied, "held": result.held})
    for gap in find_partition_gaps(caches):
        printer.warning(gap)
    held = f"   {result.held:,} there already" if result.held else ""
    printer.note(f"merged {plural(result.copied, 'item')} of {plural(len(caches), 'cache')} into {out}{held}")


@app.command("rm", cls=PlainCommand)
def remove(
    cache: CachePath,
    globs: Annotated[
        list[str],
        typer.Argument(metavar="GLOB...", help="Paths, globs of paths, or globs of names if they have no slash."),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Remove inputs from a cache. Their files stay where they are.

    Example: prunesid cache rm cache/ "thumbnails/*"
    """
    from prunesid_cli.pipeline.prompt_file import escape_names
    from prunesid_cli.tokencache import CacheWriter
    from prunesid_cli.tokencache.gc import NO_RUN, collect_garbage, find_matching

    opened = open_cache(cache)
    if opened.missing.numbers:
        raise opened.missing.error
    literal_names = escape_names(globs, opened)
    writer = CacheWriter(cache, opened.run or NO_RUN, __version__, sampling=opened.index.sampling)
    try:
        found = find_matching(writer, [literal_names.get(pattern, pattern) for pattern in globs])
        if not (found.gone or found.failures):
            raise UsageError(f"{' '.join(globs)}: no input of {cache}", command_line("cache", "ls", cache))
        if not dry_run:
            collect_garbage(writer, found)
    finally:
        writer.close()
    if as_json:
        printer.record({"removed": len(found.gone), "failures": len(found.failures), "bytes": found.bytes})
    parts = [plural(len(found.gone), "input")]
    parts += [plural(len(found.failures), "failure")] if found.failures else []
    printer.note(f"{'would remove' if dry_run else 'removed'} {', '.join(parts)}: {found.describe_bytes()}")


@app.command(cls=PlainCommand)
def relocate(
    cache: CachePath,
    old: Annotated[str, typer.Argument(metavar="OLD", help="A path or a folder, as cache ls shows it.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Where it is now.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be changed.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Change the paths of inputs that were moved, so that they need not be encoded again.

    Example: prunesid cache relocate cache/ photos /mnt/archive/photos
    """
    from prunesid_cli.tokencache import CacheWriter
    from prunesid_cli.tokencache.gc import NO_RUN
    from prunesid_cli.tokencache.gc import relocate as relocate_items

    opened = open_cache(cache)
    if opened.missing.numbers:
        raise opened.missing.error
    writer = CacheWriter(cache, opened.run or NO_RUN, __version__, sampling=opened.index.sampling)
    try:
        count = relocate_items(writer, old, new, dry_run)
    finally:
        writer.close()
    if not count:
        raise UsageError(f"{old}: no input of {cache}", command_line("cache", "ls", cache))
    done = "would relocate" if dry_run else "relocated"
    printer.note(f"{done} {plural(count, 'input')} from {old} to {new}")
    if as_json:
        printer.record({"relocated": count})


@app.command(cls=PlainCommand)
def gc(
    cache: CachePath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be removed.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Remove even if most inputs, or all of a folder, are gone.")
    ] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Remove earlier versions of inputs that changed, and everything about inputs that are gone.

    Run it in the folder where compress ran: relative names are looked up from there. It refuses to run if more than
    half of the inputs are gone, or all inputs of a top folder that has ten or more: a drive may be missing.
    """
    from prunesid_cli.tokencache import CacheWriter
    from prunesid_cli.tokencache.gc import NO_RUN, collect_garbage, find_garbage

    opened = open_cache(cache)
    if opened.missing.numbers:
        raise opened.missing.error
    writer = CacheWriter(cache, opened.run or NO_RUN, __version__, sampling=opened.index.sampling)
    try:
        garbage = find_garbage(writer)
        if not dry_run:
            if not force:
                garbage.refuse_if_suspicious()
            collect_garbage(writer, garbage)
    finally:
        writer.close()
    num_gone, num_outdated, num_failures = len(garbage.gone), len(garbage.outdated), len(garbage.failures)
    if as_json:
        counts = {"gone": num_gone, "outdated": num_outdated, "failures": num_failures}
        printer.record(counts | {"bytes": garbage.bytes})
    for source, reason in garbage.unknown.items():
        printer.error(CacheError(f"cannot tell whether {source} is gone: {reason}", "it is kept; check its drive"))
    if dry_run and garbage.suspicion and not force:
        printer.warning(f"{garbage.suspicion}: only --force removes that much")
    parts = [plural(num_gone, "missing input"), plural(num_outdated, "earlier version")]
    parts += [f"{plural(num_failures, 'failure')} of missing inputs"] if num_failures else []
    printer.note(f"{'would remove' if dry_run else 'removed'} {', '.join(parts)}: {garbage.describe_bytes()}")
    if garbage.unknown:
        raise typer.Exit(ExitCode.PARTIAL)
