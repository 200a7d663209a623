"""Renders a page: the template, with its data as JSON in it. It needs no network, and no other file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from prunesid_cli import __version__
from prunesid_cli.runtime.output_file import check_output, replace_output

MARK = b"<!-- prunesid report -->"


def check_page(path: Path, option: str) -> None:
    """Check, before work begins, that a page may be written. It may replace another one.

    Raises:
        UsageError: It may not.
    """
    check_output(path, option, "a page of prunesid", lambda header: MARK in header)


def write_page(
    path: Path,
    title: str,
    facts: Sequence[str],
    data: dict[str, Any],
    table: Sequence[Sequence[str]] = (),
    chart: str = "",
    notes: Sequence[str] = (),
) -> None:
    """Write a page.

    Args:
        path: The file, checked by `check_page`.
        title: Its title.
        facts: What it is about, one fact after the other.
        data: What the script shows: `media`, `settings` and `records`.
        table: A header and rows of cells.
        chart: SVG.
        notes: Sentences below the table.

    Raises:
        PruneSIDError: The file cannot be written.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text = files("prunesid_cli.report").joinpath("page.html").read_text(encoding="utf-8")
    html = environment.from_string(text).render(
        mark=MARK.decode(),
        title=title,
        facts=[*facts, date.today().isoformat(), f"prunesid {__version__}"],
        table=table,
        chart=chart,
        notes=notes,
        # A text in it must not end the script element that holds it.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    replace_output(path, lambda file: file.write(html.encode("utf-8", "backslashreplace")))
