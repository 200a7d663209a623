"""What a run of bench tells: as one record, and as tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from math import log
from typing import Any

from prunesid_cli.bench.break_even import BreakEven, Costs, break_even
from prunesid_cli.bench.stages import CACHE, STAGES, STOCK, Measured
from prunesid_cli.text import plural

RIVALS = {
    True: "the stock transformers model's own generate, from pixels to the last token; it projects where it encodes",
    False: "all tokens kept and none selected, which is the stock model token for token; it could not be asked itself",
}
"""By whether that model itself was measured."""
RANDOM = "random weights, for timing only"
WORDS = {
    "decode": "decode: open the pictures",
    "encode": "encode: the vision tower",
    "select": "select: what to keep",
    "project": "project: into the prompt",
    "prefill": "prefill: read the prompt",
    "decoding": "decoding: further tokens",
}
"""Lines of the table about STAGES."""
PAYS = {
    "answer_tokens": "pays from: tokens of an answer",
    "visual_tokens": "pays from: visual tokens",
    "prompt_tokens": "pays from: tokens of a prompt",
    "prompts": "cache pays from: prompts a picture",
    "prompts_pruned": "the same, against pruned anew",
}
"""Lines of the table about a `BreakEven`."""
TOTALS: dict[str, Callable[[Measured], float]] = {
    "to the end": lambda one: one.whole,
    "to the first token": lambda one: one.to_first,
}
ALIKE = 1.1
"""Times the stock model's, up to which a total is the same."""


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


def drops(one: Measured) -> bool:
    """Whether anything was pruned."""
    return one.mean("kept") < one.mean("tokens")


def turning_point(stock: Measured, pruned: Measured) -> BreakEven:
    return break_even(costs_of(stock), costs_of(pruned), round(stock.mean("text")), stock.new_tokens)


def differing(measured: Sequence[Measured]) -> Iterator[tuple[Measured, str, float]]:
    """Of settings that prune nothing the total that is least like the stock model's, and how many times that it is;
    none where all are alike."""
    stock = {one.batch_size: one for one in measured if one.setting == STOCK}
    for one in measured:
        times = {name: total(one) / total(stock[one.batch_size]) for name, total in TOTALS.items()}
        worst = max(times, key=lambda name: abs(log(times[name])))
        if not drops(one) and abs(log(times[worst])) > log(ALIKE):
            yield one, worst, times[worst]


def records_of(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """One for each setting and batch size; in seconds of a whole batch, and MB."""
    stock = {one.batch_size: one for one in measured if one.setting == STOCK}
    return [_record(one, stock[one.batch_size]) for one in measured]


def _record(one: Measured, stock: Measured) -> dict[str, Any]:
    return {
        "batch_size": one.batch_size,
        "setting": one.setting,
        "tokens": one.mean("tokens"),
        "kept": one.mean("kept"),
        "text_tokens": one.mean("text"),
        "new_tokens": one.new_tokens,
        "stages": {name: _stage(one, name) | {"share": one.seconds[name] / one.whole} for name in STAGES},
        "seconds": one.whole,
        "seconds_to_first": one.to_first,
        "seconds_a_token": one.a_token,
        "items_a_second": one.batch_size / one.whole,
        "spread": one.spread,
        "times_faster": stock.whole / one.whole,
        "times_faster_to_first": stock.to_first / one.to_first,
        "peak_mb": one.most("peak_mb"),
        "cache": {name: _stage(one, name) for name in CACHE if name in one.seconds},
        "break_even": asdict(turning_point(stock, one)) if drops(one) else None,
    }


def _stage(one: Measured, name: str) -> dict[str, Any]:
    runs = [each.laps[name].seconds for each in one.rounds[1:]]
    return {"seconds": one.seconds[name], "runs": runs, "grown_mb": one.most("grown_mb", name)}


def about(found: dict[str, Any]) -> list[str]:
    """Of all of them: what was measured, on what, against what."""
    model, machine, one = found["model"], found["machine"], found["settings"][0]
    named = f"{model['name']} ({RANDOM})" if model["weights"] == RANDOM else model["name"]
    where = machine["gpu"] if "gpu" in machine else f"{machine['cpu']}, {plural(machine['threads'], 'thread')}"
    return [
        f"{named}, {found['dtype']}, {found['attention']}, {found['device']}: {where}",
        f"stock: {found['stock']}",
        f"prompts of {one['text_tokens']:.0f} tokens beside the visual ones, answers of {one['new_tokens']}",
        f"milliseconds of a batch (medians of {plural(found['rounds'], 'round')} after a warm-up), share of the whole,"
        f" MB beyond what was held before ({found['memory']})",
        "pays from: the least number of what is named at which pruning is no slower than stock; never: at none",
    ]


def tables(measured: Sequence[Measured]) -> list[list[list[str]]]:
    """For each batch size the cells of a table: a line for each figure, a column for each setting."""
    return [_table(list(some)) for _, some in groupby(measured, lambda one: one.batch_size)]


def _table(some: Sequence[Measured]) -> list[list[str]]:
    stock = some[0]
    size = stock.batch_size
    figures: dict[str, Callable[[Measured], str]] = {
        f"batch of {size}": lambda one: f"{_named(one)}, {plural(round(one.mean('kept')), 'token')}",
        **{WORDS[name]: partial(_cell, name=name) for name in STAGES},
        "to the first token": lambda one: f"{1000 * one.to_first:,.1f} ms",
        "times faster to it": lambda one: f"{stock.to_first / one.to_first:.2f}",
        "a further token": lambda one: f"{1000 * one.a_token:,.2f} ms",
        "whole": lambda one: f"{1000 * one.whole:,.1f} ms",
        "times faster": lambda one: f"{stock.whole / one.whole:.2f}",
        "items a second": lambda one: f"{size / one.whole:,.2f}",
        "peak memory": lambda one: _mb(one.most("peak_mb")) or "-",
    }
    for name, words in PAYS.items():
        figures[words] = partial(_pays, stock=stock, name=name)
    return [[name, *map(figure, some)] for name, figure in figures.items()]


def _named(one: Measured) -> str:
    return one.setting if one.setting == STOCK else f"--keep {one.setting}"


def _cell(one: Measured, name: str) -> str:
    seconds = one.seconds[name]
    cells = (f"{1000 * seconds:,.1f} ms", f"{seconds / one.whole:.1%}", _mb(one.most("grown_mb", name)))
    return f"{cells[0]}  {cells[1]:>6}  {cells[2]:>9}" if seconds else f"-{'':19}"


def _mb(value: float | None) -> str:
    return "" if value is None else f"{max(value, 0):,.0f} MB"


def _pays(one: Measured, stock: Measured, name: str) -> str:
    if not drops(one):
        return "-"
    found = getattr(turning_point(stock, one), name)
    return "never" if found is None else f"{found:,}"
