"""Renders a page: the template, with its data as JSON in it. It needs no network, and no other file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2

from prunesid_cli import __version__
from prunesid_cli.runtime.output_file import check_output, replace_output

MARK = b"<!-- prunesid report -->"


VISUAL_TOKENS = (
    "What the language model reads of a picture: one token for each patch, and, with some models, one for the whole "
    "picture (CLS). A budget counts CLS, so 64 tokens may be 63 patches and CLS."
)


@dataclass(frozen=True)
class Link:
    """A cell of a table that sets the filters of the page.

    Attributes:
        text: The cell.
        setting: Setting to choose.
        show: Which records to show, a value of the page's field of that name.
    """

    text: str
    setting: str
    show: str


@dataclass(frozen=True)
class Table:
    """A table at the top of a page.

    Attributes:
        caption: What it is about.
        header: Cells of the header.
        rows: Rows of cells.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Link]]


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
    tables: Sequence[Table] = (),
    chart: str = "",
    notes: Sequence[str] = (),
    terms: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a page.

    Args:
        path: The file, checked by `check_page`.
        title: Its title.
        facts: What it is about, one fact after the other.
        data: What the script shows: `media`, `settings` and `records`, and `noun`, what a record is called.
        tables: Tables. The chart is below the first one.
        chart: SVG.
        notes: Sentences below the chart.
        terms: Words that the page explains.

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
        tables=tables,
        chart=chart,
        notes=notes,
        terms=terms,
        noun=data["noun"],
        # A text in it must not end the script element that holds it.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    )
    replace_output(path, lambda file: file.write(html.encode("utf-8", "backslashreplace")))
