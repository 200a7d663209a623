"""Accuracy against budget, a line for each method: a picture for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from prunesid_cli.errors import UsageError
from prunesid_cli.evaluate.report import Row

FEW = 3
"""So many bands can be told apart."""
COLOURS = ("#d62728", "#1f77b4", "#7f7f7f", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#bcbd22")
MARKERS = "osD^vPX*<>"
ROOM = 0.02
"""Above an accuracy of 1: the scale is the logarithm of what is left to there, since most methods meet near the top."""
TICKS = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 1)


def check_plot() -> None:
    """Raises UsageError: nothing can be plotted here. Found out before hours of answers."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", "pip install 'prunesid[plot]'")


def draw_plot(rows: Sequence[Row], path: Path, measure: str) -> None:
    """Write a picture of what was measured; the ending of its name says of what kind.

    Raises:
        UsageError: there is no such kind, or the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    axes.set_yscale("function", functions=(_stretched, _shrunk))
    base, *others = rows
    label = f"all {base.kept:,.0f} tokens"
    axes.axhline(base.marks.accuracy, color="0.4", linestyle="--", linewidth=1, label=label)
    _draw_methods(axes, base.marks.accuracy, others)
    axes.set_xscale("log", base=2)
    counts = sorted({round(row.kept) for row in others})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in TICKS if low <= tick <= high])
    axes.minorticks_off()
    axes.set(xlabel="visual tokens kept, on average", ylabel=f"{measure} (logarithm of what is wrong)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    try:
        figure.savefig(path, dpi=160)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {error}", "name a file that ends in .png, .svg or .pdf") from error
    finally:
        pyplot.close(figure)


def _stretched(accuracy: Any) -> Any:
    return -np.log(np.maximum(1 + ROOM - accuracy, 1e-9))


def _shrunk(height: Any) -> Any:
    return 1 + ROOM - np.exp(-height)


def _draw_methods(axes: Any, base: float, rows: Sequence[Row]) -> None:
    """A line for each method, named in the order in which they stand where fewest tokens are kept.

    The first method is the one that the others are compared with: it is drawn last and stronger. Where there are more
    than FEW it alone has its interval as a band, since many bands hide the lines.
    """
    methods = defaultdict[str, list[Row]](list)
    for row in sorted(rows, key=lambda row: row.kept):
        methods[row.setting.method].append(row)
    looks = dict(zip(methods, cycle(zip(COLOURS, MARKERS, strict=True)), strict=False))
    first = rows[0].setting.method if rows else None
    ordered = sorted(methods.items(), key=lambda item: -item[1][0].marks.accuracy)
    for method, some in ordered:
        (colour, marker), is_first = looks[method], method == first
        counts, marks = [row.kept for row in some], [row.marks for row in some]
        weight = {"linewidth": 2.6, "markersize": 7, "zorder": 4} if is_first else {"linewidth": 1.2, "markersize": 5}
        axes.plot(counts, [one.accuracy for one in marks], marker=marker, color=colour, label=method, **weight)
        if base and (is_first or len(methods) <= FEW):
            edges = [[min(1.0, base * getattr(one, name)) for one in marks] for name in ("low", "high")]
            axes.fill_between(counts, *edges, color=colour, alpha=0.12, linewidth=0)
