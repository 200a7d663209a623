"""prunesid cache: look into a cache, and check it. Never imports torch."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from prunesid_cli import __version__
from prunesid_cli.cli import options as o
from prunesid_cli.cli.compress_report import end_if_incomplete
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import ExitCode, UsageError
from prunesid_cli.text import escape_control_characters, plural
from prunesid_cli.tokencache import Cache, open_cache, read_calibration
from prunesid_cli.tokencache.format import MAX_SHARD_ITEMS, layout_to_record

app = typer.Typer(no_args_is_help=True, help="List, describe, check, join and clean caches.")
CachePath = Annotated[Path, typer.Argument(metavar="CACHE", help="A folder that compress wrote.")]


@app.command("ls")
def list_items(
    cache: CachePath,
    failed: Annotated[bool, typer.Option("--failed", help="The inputs that failed, and why.")] = False,
    null: Annotated[bool, typer.Option("-0", "--null", help="Names alone, each ended by NUL: for xargs -0.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """List what is in a cache: kept and all visual tokens, size in pixels, source.

    What failed since is stale: its tokens are of an earlier version. Control characters in names are escaped, but for
    --null and --json.
    """
    if null and as_json:
        raise UsageError("--null and --json contradict each other", "leave out one")
    opened = open_cache(cache)
    if null:
        _list_names(opened, failed)
    elif failed:
        _list_failed(opened, as_json)
    else:
        _list_held(opened, as_json)
    if not failed and not len(opened):
        printer.note(f"{cache} is empty")
    end_if_incomplete(opened)


def _list_names(opened: Cache, failed: bool) -> None:
    names = (
        (record["source"] for record in opened.failures()) if failed else (item.source for _, item in opened.items())
    )
    for name in names:
        printer.raw(os.fsencode(name) + b"\0")


def _row(*cells: str) -> None:
    printer.result("\t".join(map(escape_control_characters, cells)))


def _list_failed(opened: Cache, as_json: bool) -> None:
    for record in opened.failures():
        if as_json:
            printer.record(record)
        else:
            _row(record["source"], record["error"].removeprefix(record["source"] + ": "))


def _list_held(opened: Cache, as_json: bool) -> None:
    stale = opened.stale_sources()
    for shard, item in opened.items():
        is_stale = item.source in stale
        if as_json:
            counts = {"tokens": item.layout.total, "kept": item.kept, "stale": is_stale}
            of_clip = {"sampling": item.sampling, "decoder": item.decoder}
            stored = item.to_record(layout_to_record(item.layout))
            printer.record({"source": item.source, "shard": shard.path.name} | counts | stored | of_clip)
        else:
            note = ["stale: failed since"] * is_stale
            _row(f"{item.kept}/{item.layout.total}", f"{item.size[0]}x{item.size[1]}", item.source, *note)


@app.command()
def info(cache: CachePath, as_json: o.Json = False, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """Describe a cache: model, method, how many items, how large."""
    opened = open_cache(cache)
    total, kept = opened.index.table.counts.sum(0).tolist()
    facts: dict[str, object] = asdict(opened.run) if opened.run else {}
    facts |= {"items": len(opened), "failed": len(opened.failures()), "stale": len(opened.stale_sources())}
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
            printer.result(f"{name:11} {value}")
    end_if_incomplete(opened)


@app.command("verify")
def check(cache: CachePath, as_json: o.Json = False, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """Read every byte of a cache and compare it with what was written."""
    from prunesid_cli.tokencache import verify_cache

    good, faults = verify_cache(cache)
    for fault in faults:
        printer.error(fault)
    if as_json:
        printer.record({"good": good, "faults": [fault.problem for fault in faults]})
    else:
        printer.result(f"{plural(good, 'item')} good, {plural(len(faults), 'fault')}")
    if faults:
        raise typer.Exit(ExitCode.FAILURE)


@app.command("merge")
def join(
    caches: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="Folders that the same compress wrote.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="CACHE", help="Where all of it goes; made or continued.")],
    shard_items: o.ShardItems = MAX_SHARD_ITEMS,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Join what several machines made with compress --shard. The caches that are read stay as they are.

    Example: prunesid cache merge part-1/ part-2/ --out cache/
    """
    from prunesid_cli.tokencache import ShardLimits
    from prunesid_cli.tokencache.merge import merge
    from prunesid_cli.tokencache.shard_marker import find_partition_gaps

    merged = merge(caches, out, __version__, ShardLimits(shard_items))
    if as_json:
        printer.record({"merged": merged.copied, "held": merged.held})
    for told in find_partition_gaps(caches):
        printer.warning(told)
    held = f"   {merged.held:,} there already" if merged.held else ""
    printer.note(f"merged {plural(merged.copied, 'item')} of {plural(len(caches), 'cache')} into {out}{held}")


@app.command("gc")
def clean(
    cache: CachePath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be let go of.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Even if most inputs, or a whole folder, are gone.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """Let go of earlier versions of inputs that changed, and of inputs that are gone, also of those that failed.

    Relative names are looked for from the current folder: call it where compress was called. It refuses where more than
    half of the inputs are gone, or all of a top folder that has ten or more.
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
    if as_json:
        counts = {"gone": len(garbage.gone), "outdated": len(garbage.outdated), "failures": len(garbage.failures)}
        printer.record(counts | {"bytes": garbage.bytes})
    if dry_run and garbage.suspicion and not force:
        printer.warning(f"{garbage.suspicion}: only --force lets go of that much")
    are = "is" if len(garbage.gone) == 1 else "are"
    what = f"{plural(len(garbage.gone), 'input')} that {are} gone, {plural(len(garbage.outdated), 'earlier version')}"
    what += f", {plural(len(garbage.failures), 'failure')} of such inputs" if garbage.failures else ""
    printer.note(f"{'would let' if dry_run else 'let'} go of {what}: {decimal(garbage.bytes)}")
