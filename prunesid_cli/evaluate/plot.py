"""Plot of accuracy against budget, with one line per method."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from prunesid_cli.errors import UsageError
from prunesid_cli.evaluate.report import SettingSummary
from prunesid_cli.inputs.file_type import detect_file_type
from prunesid_cli.runtime.output_file import check_output, replace_output

MAX_BANDS = 3
"""Number of methods up to which all get a band of their confidence interval; more bands would hide the lines."""
COLOURS = ("#d62728", "#1f77b4", "#7f7f7f", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#bcbd22")
MARKERS = "osD^vPX*<>"
HEADROOM = 0.02
"""Accuracy above 1 at which the scale would be infinite. The scale is the logarithm of the distance to there, since
most methods are close together near the top."""
TICKS = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 1)


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


def draw_plot(summaries: Sequence[SettingSummary], path: Path, measure: str) -> None:
    """Write a plot.

    Args:
        summaries: The settings; the first one is without pruning.
        path: The file, checked by `check_plot`; its extension gives the format.
        measure: Label of the scores.

    Raises:
        PruneSIDError: The file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    unpruned, *pruned = summaries
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.set_yscale("function", functions=(_to_log_error, _from_log_error))
    label = f"all {unpruned.kept:,.0f} tokens"
    axes.axhline(unpruned.accuracy.accuracy, color="0.4", linestyle="--", linewidth=1, label=label)
    _draw_methods(axes, unpruned.accuracy.accuracy, pruned)
    axes.set_xscale("log", base=2)
    counts = sorted({round(summary.kept) for summary in pruned})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.minorticks_off()
    axes.set(xlabel="visual tokens kept, on average", ylabel=f"{measure} (logarithm of what is wrong)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    try:
        image_format = path.suffix.lower().removeprefix(".")
        replace_output(path, lambda file: figure.savefig(file, format=image_format, dpi=160))
    finally:
        pyplot.close(figure)


def _to_log_error(accuracy: Any) -> Any:
    return -np.log(np.maximum(1 + HEADROOM - accuracy, 1e-9))


def _from_log_error(height: Any) -> Any:
    return 1 + HEADROOM - np.exp(-height)


def _draw_methods(axes: Any, unpruned_accuracy: float, summaries: Sequence[SettingSummary]) -> None:
    """Draw a line per method; the legend has the order of the lines at the smallest budget.

    The first method is the one that the others are compared with: it is drawn on top and in a thicker line.
    """
    if not summaries:
        return
    first = summaries[0].setting.method
    by_method = defaultdict[str, list[SettingSummary]](list)
    for summary in sorted(summaries, key=lambda summary: summary.kept):
        by_method[summary.setting.method].append(summary)
    styles = dict(zip(by_method, cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))
    ordered = sorted(by_method.items(), key=lambda item: -item[1][0].accuracy.accuracy)
    for method, points in ordered:
        colour, marker = styles[method]
        counts = [point.kept for point in points]
        width = {"linewidth": 1.2, "markersize": 5}
        if method == first:
            width = {"linewidth": 2.6, "markersize": 7, "zorder": 4}
        accuracies = [point.accuracy.accuracy for point in points]
        axes.plot(counts, accuracies, marker=marker, color=colour, label=method, **width)
        if unpruned_accuracy and (method == first or len(by_method) <= MAX_BANDS):
            lows = [min(1.0, unpruned_accuracy * (point.accuracy.low or 0)) for point in points]
            highs = [min(1.0, unpruned_accuracy * (point.accuracy.high or 0)) for point in points]
            axes.fill_between(counts, lows, highs, color=colour, alpha=0.12, linewidth=0)
