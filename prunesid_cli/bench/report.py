"""What a run of bench tells: as one record, and as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from prunesid_cli.bench.break_even import BreakEven, Costs, break_even
from prunesid_cli.bench.stages import CACHE, STAGES, STOCK, Measured

RIVAL = (
    "keep all: the stock class generates from all visual tokens, which gives the stock model's answers token for token;"
    " nothing is selected"
)
RANDOM = "random weights, for timing only"


def costs_of(one: Measured) -> Costs:
    spent = one.seconds
    return Costs(
        see=spent["decode"] + spent["encode"],
        select=spent["select"],
        first=spent["project"] + spent["prefill"],
        token=one.a_token,
        visual=one.mean("kept"),
        **{name: spent.get(name, 0.0) for name in CACHE},
    )


def turning_point(stock: Measured, pruned: Measured) -> BreakEven:
    return break_even(costs_of(stock), costs_of(pruned), round(stock.mean("text")), stock.new_tokens)


def records_of(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """One for each setting and batch size; in seconds of a whole batch, and MB."""
    stock = {one.batch_size: one for one in measured if one.keep == STOCK}
    return [_record(one, stock[one.batch_size]) for one in measured]


def _record(one: Measured, stock: Measured) -> dict[str, Any]:
    return {
        "batch_size": one.batch_size,
        "keep": one.keep,
        "tokens": one.mean("tokens"),
        "kept": one.mean("kept"),
        "text_tokens": one.mean("text"),
        "new_tokens": one.new_tokens,
        "stages": {name: _stage(one, name) | {"share": one.seconds[name] / one.whole} for name in STAGES},
        "seconds": one.whole,
        "seconds_to_first": one.to_first,
        "seconds_a_token": one.a_token,
        "items_a_second": one.batch_size / one.whole,
        "times_faster": stock.whole / one.whole,
        "times_faster_to_first": stock.to_first / one.to_first,
        "peak_mb": one.most("peak_mb"),
        "cache": {name: _stage(one, name) for name in CACHE if name in one.seconds},
        "break_even": None if one is stock else asdict(turning_point(stock, one)),
    }


def _stage(one: Measured, name: str) -> dict[str, Any]:
    runs = [each.laps[name].seconds for each in one.rounds[1:]]
    return {"seconds": one.seconds[name], "runs": runs, "grown_mb": one.most("grown_mb", name)}


def about(found: dict[str, Any]) -> list[str]:
    """Of all of them: what was measured, on what, against what."""
    model, machine = found["model"], found["machine"]
    named = f"{model['name']} ({RANDOM})" if model["weights"] == RANDOM else model["name"]
    where = machine["gpu"] if "gpu" in machine else f"{machine['cpu']}, {machine['threads']} threads"
    return [
        f"{named}, {found['dtype']}, {found['attention']}, {found['device']}: {where}",
        f"stock is {RIVAL}",
        f"milliseconds of a batch (medians of {found['rounds']} rounds after a warm-up), share of the whole, "
        f"MB beyond what was held before ({found['memory']})",
    ]


def tables(measured: Sequence[Measured]) -> list[list[list[str]]]:
    """For each batch size the cells of a table: a line for each stage, a column for each setting."""
    return [_table(list(some)) for _, some in groupby(measured, lambda one: one.batch_size)]


def _table(some: Sequence[Measured]) -> list[list[str]]:
    stock = some[0]
    size, text, new = stock.batch_size, stock.mean("text"), stock.new_tokens
    lines = [[f"batch of {size}", *(_named(one) for one in some)]]
    for name in STAGES:
        lines.append([name, *(_cell(one, name) for one in some)])
    figures = {
        "to the first token": lambda one: f"{1000 * one.to_first:,.1f} ms",
        "whole": lambda one: f"{1000 * one.whole:,.1f} ms",
        "times faster": lambda one: f"{stock.whole / one.whole:.2f}",
        "a further token": lambda one: f"{1000 * one.a_token:,.2f} ms",
        "items a second": lambda one: f"{size / one.whole:,.2f}",
        "peak memory": lambda one: _mb(one.most("peak_mb")),
    }
    lines += [[name, *(figure(one) for one in some)] for name, figure in figures.items()]
    return [*lines, [f"{text:.0f} tokens of text, {new} new ones", *("" for _ in some)]]


def _named(one: Measured) -> str:
    name = "stock" if one.keep == STOCK else f"--keep {one.keep}"
    return f"{name}, {one.mean('kept'):,.0f} tokens"


def _cell(one: Measured, name: str) -> str:
    seconds, grown = one.seconds[name], one.most("grown_mb", name)
    if name == "select" and one.keep == STOCK:
        return "-" + " " * len("  100.0 %    1,000 MB")
    return f"{1000 * seconds:,.1f} ms  {seconds / one.whole:5.1%}  {_mb(grown):>9}"


def _mb(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f} MB"


def advice(measured: Sequence[Measured]) -> list[str]:
    """From where on each budget pays, a line each."""
    stock = {one.batch_size: one for one in measured if one.keep == STOCK}
    pruned = [one for one in measured if one.keep != STOCK]
    return [_sentence(one, turning_point(stock[one.batch_size], one)) for one in pruned]


def _sentence(one: Measured, found: BreakEven) -> str:
    pays = _from(found.answer_tokens, "answers of", "token")
    visual = _from(found.visual_tokens, "pictures of", "visual token")
    cached = _from(found.prompts, "", "prompt") + " a picture"
    again = _from(found.prompts_pruned, "", "prompt")
    return (
        f"batch of {one.batch_size}, --keep {one.keep}: pays {pays} (at {one.new_tokens} tokens {visual}); "
        f"a cache pays {cached} against stock, {again} against asking pruned again"
    )


def _from(count: int | None, what: str, word: str) -> str:
    if count is None:
        return "never, by these figures,"
    return " ".join(filter(None, ["from", what, f"{count:,}", word + "s" * (count != 1), "on"]))
