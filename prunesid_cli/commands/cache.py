"""prunesid cache: look into a cache, and check it. Never imports torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from prunesid_cli.commands import options as o
from prunesid_cli.commands.report import end_if_incomplete
from prunesid_cli.errors import ExitCode
from prunesid_cli.output import plural, printer, size
from prunesid_cli.tokencache import Cache, open_cache, read_calibration, verify_all

app = typer.Typer(no_args_is_help=True, help="List, describe and check a cache.")
CachePath = Annotated[Path, typer.Argument(metavar="CACHE", help="A folder that compress wrote.")]


@app.command("ls")
def list_items(
    cache: CachePath,
    failed: Annotated[bool, typer.Option("--failed", help="The inputs that failed, and why.")] = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:
    """List what is in a cache: kept and all visual tokens, size in pixels, source."""
    opened = open_cache(cache)
    if failed:
        _list_failed(opened, as_json)
    else:
        _list_held(opened, as_json)
    end_if_incomplete(opened)


def _list_failed(opened: Cache, as_json: bool) -> None:
    for record in opened.failures():
        if as_json:
            printer.record(record)
        else:
            printer.result(f"{record['source']}\t{record['error'].removeprefix(record['source'] + ': ')}")


def _list_held(opened: Cache, as_json: bool) -> None:
    for shard, item in opened.items():
        if as_json:
            counts = {"tokens": item.total, "kept": item.kept}
            printer.record({"source": item.source, "shard": shard.path.name} | counts | asdict(item))
        else:
            printer.result(f"{item.kept}/{item.total}\t{item.size[0]}x{item.size[1]}\t{item.source}")


@app.command()
def info(cache: CachePath, as_json: o.Json = False, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """Describe a cache: model, method, how many items, how large."""
    opened = open_cache(cache)
    items = [item for _, item in opened.items()]
    total, kept = sum(item.total for item in items), sum(item.kept for item in items)
    facts: dict[str, object] = asdict(opened.run) if opened.run else {}
    facts |= {"items": len(items), "failed": len(opened.failures()), "shards": len(opened.shards)}
    facts |= {"missing": opened.missing.numbers} if opened.missing.numbers else {}
    sampling = next((item.sampling for item in items if item.sampling), "")
    facts |= {"sampling": sampling} if sampling else {}
    facts |= {"tokens": total, "kept": kept, "bytes": opened.size()}
    calibration = read_calibration(cache)
    facts |= {"calibration": asdict(calibration)} if calibration else {}
    if as_json:
        printer.record(facts)
    else:
        facts |= {"bytes": size(opened.size()), "kept": f"{kept} ({kept / max(total, 1):.1%})"}
        if calibration:
            facts["calibration"] = f"phi {calibration.phi:.4f}, of {plural(calibration.images, 'image')}"
        for name, value in facts.items():
            printer.result(f"{name:11} {value}")
    end_if_incomplete(opened)


@app.command("verify")
def check(cache: CachePath, as_json: o.Json = False, quiet: o.Quiet = False, debug: o.Debug = False) -> None:
    """Read every byte of a cache and compare it with what was written."""
    good, faults = verify_all(cache)
    for fault in faults:
        printer.error(fault)
    if as_json:
        printer.record({"good": good, "faults": [fault.problem for fault in faults]})
    else:
        printer.result(f"{plural(good, 'item')} good, {plural(len(faults), 'fault')}")
    if faults:
        raise typer.Exit(ExitCode.FAILURE)
