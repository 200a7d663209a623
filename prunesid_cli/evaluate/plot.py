"""Plot of accuracy against budget, with one line per method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prunesid_cli.errors import UsageError
from prunesid_cli.evaluate.report import SettingSummary
from prunesid_cli.inputs.file_type import detect_file_type
from prunesid_cli.runtime.output_file import check_output, replace_output

MAX_BANDS = 3
"""Number of methods up to which each gets a band of its confidence interval; more bands would hide the lines."""
COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e")
OTHER_COLOUR = "#b0b0b0"
"""Colours of the first methods, and of all others."""
MARKERS = "osD^vPX*<>"


def check_plot(path: Path) -> None:
    """Check that a plot can be drawn and written. Called before answers are generated, which can take hours.

    Raises:
        UsageError: matplotlib is not installed, there is no such format, or the file cannot be written.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", "pip install 'prunesid[plot]'")
    from matplotlib.backend_bases import FigureCanvasBase

    if path.suffix.lower().removeprefix(".") not in FigureCanvasBase.filetypes:
        raise UsageError(f"--plot {path} is not the name of a picture", "use a name that ends in .png, .svg or .pdf")
    check_output(path, "--plot", "a plot", _is_plot)


def _is_plot(header: bytes) -> bool:
    return detect_file_type(header).is_image or header.startswith((b"%PDF", b"%!PS")) or b"<!DOCTYPE svg" in header


def draw_plot(summaries: Sequence[SettingSummary], path: Path, measure: str, title: str) -> None:
    """Write a plot.

    Args:
        summaries: The settings; the first one is without pruning.
        path: The file, checked by `check_plot`; its extension gives the format.
        measure: Label of the scores.
        title: What is plotted.

    Raises:
        PruneSIDError: The file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    unpruned, *pruned = summaries
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    label = f"all {unpruned.kept:,.0f} tokens"
    axes.axhline(unpruned.accuracy.accuracy, color="0.4", linestyle="--", linewidth=1, label=label)
    _draw_methods(axes, pruned)
    axes.set_xscale("log", base=2)
    counts = sorted({round(summary.kept) for summary in pruned})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens kept, on average")
    axes.set_ylabel(measure)
    axes.set_title(title, fontsize="small", loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    try:
        image_format = path.suffix.lower().removeprefix(".")
        replace_output(path, lambda file: figure.savefig(file, format=image_format, dpi=160))
    finally:
        pyplot.close(figure)


def _draw_methods(axes: Any, summaries: Sequence[SettingSummary]) -> None:
    """Draw a line per method; the legend has the order of the lines at the smallest budget.

    The first methods have colours, and are drawn above the others. With few methods, each has a band.
    """
    by_method = defaultdict[str, list[SettingSummary]](list)
    for summary in sorted(summaries, key=lambda summary: summary.kept):
        by_method[summary.setting.method].append(summary)
    methods = list(dict.fromkeys(summary.setting.method for summary in summaries))
    ordered = sorted(by_method.items(), key=lambda item: -item[1][0].accuracy.accuracy)
    for method, points in ordered:
        number = methods.index(method)
        is_main = number < len(COLOURS)
        colour, marker = COLOURS[number] if is_main else OTHER_COLOUR, MARKERS[number % len(MARKERS)]
        counts, accuracies = [point.kept for point in points], [point.accuracy.accuracy for point in points]
        style = {"linewidth": 1.8, "markersize": 5, "zorder": 4 if is_main else 2}
        axes.plot(counts, accuracies, marker=marker, color=colour, label=method, **style)
        intervals = [point.accuracy.interval for point in points if point.accuracy.interval]
        if len(methods) <= MAX_BANDS and len(intervals) == len(points):
            lows, highs = zip(*intervals, strict=True)
            axes.fill_between(counts, lows, highs, color=colour, alpha=0.12, linewidth=0)
