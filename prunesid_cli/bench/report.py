"""Report of a benchmark: JSON records, and tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from math import log
from typing import Any

from prunesid_cli.bench.break_even import BreakEven, Costs, break_even
from prunesid_cli.bench.results import CACHE_STAGES, STAGES, STOCK, SettingResult
from prunesid_cli.text import plural

STOCK_IS_TRANSFORMERS = (
    "the stock transformers model's own generate, from pixels to the last token; it projects where it encodes"
)
STOCK_IS_UNPRUNED = (
    "all tokens kept and none selected, which is the stock model token for token; it could not be asked itself"
)
RANDOM_WEIGHTS = "random weights, for timing only"
STAGE_LABELS = {
    "decode": "decode: open the pictures",
    "encode": "encode: the vision tower",
    "select": "select: what to keep",
    "project": "project: into the prompt",
    "prefill": "prefill: read the prompt",
    "decoding": "decoding: further tokens",
}
BREAK_EVEN_LABELS = {
    "answer_tokens": "pays from: tokens of an answer",
    "visual_tokens": "pays from: visual tokens",
    "prompt_tokens": "pays from: tokens of a prompt",
    "prompts": "cache pays from: prompts a picture",
    "prompts_pruned": "the same, against pruned anew",
}
TOTALS: dict[str, Callable[[SettingResult], float]] = {
    "to the end": lambda result: result.total_seconds,
    "to the first token": lambda result: result.seconds_to_first_token,
}
SAME_TIME_RATIO = 1.1
"""Ratio up to which two totals count as the same."""


def compute_break_even(stock: SettingResult, pruned: SettingResult) -> BreakEven:
    """Return the break-even points of a setting."""
    return break_even(
        _costs(stock), _costs(pruned), text_tokens=round(stock.mean("text")), answer_tokens=stock.new_tokens
    )


def _costs(result: SettingResult) -> Costs:
    seconds = result.seconds
    return Costs(
        see=seconds["decode"] + seconds["encode"],
        select=seconds["select"],
        first=seconds["project"] + seconds["prefill"],
        token=result.seconds_per_token,
        visual=result.mean("kept"),
        write=seconds.get("write", 0.0),
        read=seconds.get("read", 0.0),
    )


def unpruned_deviations(results: Sequence[SettingResult]) -> Iterator[tuple[SettingResult, str, float]]:
    """Find settings that prune nothing and still take another time than the stock model.

    Yields:
        The setting, the name of the total in `TOTALS` that differs most, and its ratio to the stock model's.
    """
    stock = _stock_by_batch_size(results)
    for result in results:
        if result.is_pruned:
            continue
        ratios = {name: total(result) / total(stock[result.batch_size]) for name, total in TOTALS.items()}
        name = max(ratios, key=lambda name: abs(log(ratios[name])))
        if abs(log(ratios[name])) > log(SAME_TIME_RATIO):
            yield result, name, ratios[name]


def to_records(results: Sequence[SettingResult]) -> list[dict[str, Any]]:
    """Return one JSON record per setting and batch size, in seconds of a whole batch and MB."""
    stock = _stock_by_batch_size(results)
    return [_to_record(result, stock[result.batch_size]) for result in results]


def _stock_by_batch_size(results: Sequence[SettingResult]) -> dict[int, SettingResult]:
    return {result.batch_size: result for result in results if result.setting == STOCK}


def _to_record(result: SettingResult, stock: SettingResult) -> dict[str, Any]:
    total = result.total_seconds
    return {
        "batch_size": result.batch_size,
        "setting": result.setting,
        "tokens": result.mean("tokens"),
        "kept": result.mean("kept"),
        "text_tokens": result.mean("text"),
        "new_tokens": result.new_tokens,
        "stages": {name: _stage_to_record(result, name) | {"share": result.seconds[name] / total} for name in STAGES},
        "seconds": total,
        "seconds_to_first": result.seconds_to_first_token,
        "seconds_a_token": result.seconds_per_token,
        "items_a_second": result.batch_size / total,
        "spread": result.spread,
        "times_faster": stock.total_seconds / total,
        "times_faster_to_first": stock.seconds_to_first_token / result.seconds_to_first_token,
        "peak_mb": result.maximum("peak_mb"),
        "cache": {name: _stage_to_record(result, name) for name in CACHE_STAGES if name in result.seconds},
        "break_even": asdict(compute_break_even(stock, result)) if result.is_pruned else None,
    }


def _stage_to_record(result: SettingResult, stage: str) -> dict[str, Any]:
    return {
        "seconds": result.seconds[stage],
        "runs": [each.laps[stage].seconds for each in result.rounds[1:]],
        "grown_mb": result.maximum("grown_mb", stage),
    }


def describe(report: dict[str, Any]) -> list[str]:
    """Return lines of text that say what was measured, on which machine, against what."""
    model, machine, first = report["model"], report["machine"], report["settings"][0]
    is_random = model["weights"] == RANDOM_WEIGHTS
    name = f"{model['name']} ({RANDOM_WEIGHTS})" if is_random else model["name"]
    hardware = machine["gpu"] if "gpu" in machine else f"{machine['cpu']}, {plural(machine['threads'], 'thread')}"
    return [
        f"{name}, {report['dtype']}, {report['attention']}, {report['device']}: {hardware}",
        f"stock: {report['stock']}",
        f"prompts of {first['text_tokens']:.0f} tokens beside the visual ones, answers of {first['new_tokens']}",
        f"milliseconds of a batch (medians of {plural(report['rounds'], 'round')} after a warm-up), share of the whole,"
        f" MB beyond what was held before ({report['memory']})",
        "pays from: the least number of what is named at which pruning is no slower than stock; never: at none",
    ]


def make_tables(results: Sequence[SettingResult]) -> list[list[list[str]]]:
    """Return the cells of a table per batch size: a row for each figure, a column for each setting."""
    return [_make_table(list(group)) for _, group in groupby(results, lambda result: result.batch_size)]


def _make_table(results: Sequence[SettingResult]) -> list[list[str]]:
    stock = results[0]
    rows: dict[str, Callable[[SettingResult], str]] = {
        f"batch of {stock.batch_size}": _setting_cell,
        **{STAGE_LABELS[name]: partial(_stage_cell, stage=name) for name in STAGES},
        "to the first token": lambda result: f"{1000 * result.seconds_to_first_token:,.1f} ms",
        "times faster to it": lambda result: f"{stock.seconds_to_first_token / result.seconds_to_first_token:.2f}",
        "a further token": lambda result: f"{1000 * result.seconds_per_token:,.2f} ms",
        "whole": lambda result: f"{1000 * result.total_seconds:,.1f} ms",
        "times faster": lambda result: f"{stock.total_seconds / result.total_seconds:.2f}",
        "items a second": lambda result: f"{result.batch_size / result.total_seconds:,.2f}",
        "peak memory": lambda result: _format_megabytes(result.maximum("peak_mb")) or "-",
        **{label: partial(_break_even_cell, stock=stock, name=name) for name, label in BREAK_EVEN_LABELS.items()},
    }
    return [[label, *map(cell, results)] for label, cell in rows.items()]


def _setting_cell(result: SettingResult) -> str:
    name = STOCK if result.setting == STOCK else f"--keep {result.setting}"
    return f"{name}, {plural(round(result.mean('kept')), 'token')}"


def _stage_cell(result: SettingResult, stage: str) -> str:
    seconds = result.seconds[stage]
    if not seconds:
        return f"-{'':19}"
    memory = _format_megabytes(result.maximum("grown_mb", stage))
    return f"{1000 * seconds:,.1f} ms  {seconds / result.total_seconds:>6.1%}  {memory:>9}"


def _format_megabytes(value: float | None) -> str:
    return "" if value is None else f"{max(value, 0):,.0f} MB"


def _break_even_cell(result: SettingResult, stock: SettingResult, name: str) -> str:
    if not result.is_pruned:
        return "-"
    count = getattr(compute_break_even(stock, result), name)
    return "never" if count is None else f"{count:,}"
