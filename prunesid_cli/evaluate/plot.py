"""Accuracy against budget, a line for each method: a picture for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from prunesid_cli.errors import UsageError
from prunesid_cli.evaluate.report import Row


def check_plot() -> None:
    """Raises UsageError: nothing can be plotted here. Found out before hours of answers."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", "pip install 'prunesid[plot]'")


def draw_plot(rows: Sequence[Row], path: Path) -> None:
    """Write a picture; the ending of its name says of what kind.

    Raises:
        UsageError: there is no such kind, or the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    base, *others = rows
    axes.axhline(base.marks.accuracy, color="0.4", linestyle="--", linewidth=1)
    axes.annotate(f"all {base.kept:,.0f} tokens", (1, base.marks.accuracy), xycoords=("axes fraction", "data"),
                  ha="right", va="bottom", color="0.4")  # fmt: skip
    methods = defaultdict[str, list[Row]](list)
    for row in others:
        methods[row.setting.method].append(row)
    for (method, some), marker in zip(methods.items(), "osD^vPX*<>" * len(methods), strict=False):
        some = sorted(some, key=lambda row: row.kept)
        counts, marks = [row.kept for row in some], [row.marks for row in some]
        (line,) = axes.plot(counts, [one.accuracy for one in marks], marker=marker, label=method)
        edges = [[base.marks.accuracy * getattr(one, name) for one in marks] for name in ("low", "high")]
        axes.fill_between(counts, *edges, color=line.get_color(), alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    counts = sorted({round(row.kept) for row in others})
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="visual tokens kept, on average", ylabel="accuracy")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if methods:
        axes.legend(frameon=False)
    try:
        figure.savefig(path, dpi=160)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write {path}: {error}", "name a file that ends in .png, .svg or .pdf") from error
    finally:
        pyplot.close(figure)
