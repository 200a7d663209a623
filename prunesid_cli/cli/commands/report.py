"""prunesid report: a page for a browser about an evaluation or a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunesid_cli.cli import options as o
from prunesid_cli.cli.terminal import printer
from prunesid_cli.errors import UsageError
from prunesid_cli.pipeline.prompt_file import ItemFilter
from prunesid_cli.report import DEFAULT_RECORDS


def report(
    source: Annotated[
        Path, typer.Argument(metavar="PATH", help="A file of answers from evaluate --out, or the folder of a cache.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PAGE.html", help="The page.")] = Path("report.html"),
    media_folder: Annotated[
        Path | None,
        typer.Option(
            "--media-folder", metavar="FOLDER",
            help="Where the paths of the questions are relative to. By default it is the folder of PATH.",
        ),
    ] = None,
    include: o.Include = None,
    exclude: o.Exclude = None,
    max_items: Annotated[
        int, typer.Option("--limit", min=1, help="Largest number of records or items on the page.")
    ] = DEFAULT_RECORDS,
    log: o.Log = None,
    quiet: o.Quiet = False,
    debug: o.Debug = False,
) -> None:  # fmt: skip
    """Write a page for a browser: which answers changed, or what a cache keeps, beside the pictures.

    The page is one file, and needs no network. It shows the pictures as they are now.

    Example: prunesid report answers.jsonl --out report.html
    """
    from prunesid_cli.report.page import check_page

    check_page(out, "--out")
    if source.is_dir():
        from prunesid_cli.cli.notices import exit_if_incomplete
        from prunesid_cli.report.cache import write_cache_page
        from prunesid_cli.tokencache import open_cache

        cache = open_cache(source)
        items = ItemFilter(include or (), exclude or (), max_items).items(cache)
        with printer.progress("reading pictures", min(len(cache), max_items), prints_results=False) as bar:
            write_cache_page(out, cache, items, bar.advance)
        printer.result(str(out))
        exit_if_incomplete(cache)
        return
    if include or exclude:
        raise UsageError("--include and --exclude are about the items of a cache", "leave them out")
    from prunesid_cli.evaluate.report import summarize
    from prunesid_cli.report.evaluation import read_evaluation, write_evaluation

    settings, records, results = read_evaluation(source, media_folder or source.parent)
    with printer.progress("reading pictures", min(len(records), max_items), prints_results=False) as bar:
        summaries = summarize(settings, records, results)
        write_evaluation(out, summaries, records, results, max_items, bar.advance)
    printer.result(str(out))
