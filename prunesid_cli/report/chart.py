"""The chart of an evaluation: accuracy against kept tokens, as SVG that follows the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from prunesid_cli.evaluate.report import SettingSummary

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 350, 56, 150, 30, 44
MARGIN = 40
"""Pixels between the ends of the axis and the first and the last budget. The axis is logarithmic."""
NUM_LINES = 5
"""Methods that have a colour; others are grey."""


def draw_chart(summaries: Sequence[SettingSummary], measure: str, basis: str) -> str:
    """Draw the settings.

    Args:
        summaries: The settings; the first one is without pruning.
        measure: What scores measure.
        basis: What the chart is based on, such as "67 questions, 6 pictures".

    Returns:
        SVG; nothing without pruned settings.
    """
    unpruned, *pruned = summaries
    if not pruned:
        return ""
    counts = sorted({summary.kept for summary in pruned})
    span = math.log(counts[-1] / counts[0])
    shares = {count: math.log(count / counts[0]) / span if span else 0.5 for count in counts}
    places = {count: LEFT + MARGIN + (WIDTH - LEFT - RIGHT - 2 * MARGIN) * share for count, share in shares.items()}
    lows = [summary.accuracy.interval[0] for summary in summaries if summary.accuracy.interval]
    lowest = min([*lows, *(summary.accuracy.accuracy for summary in summaries)])
    bottom = max(0.0, int(lowest * 10) / 10)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - bottom) / (1 - bottom or 1))

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(measure)} against kept visual tokens">'
    ]
    for step in range(round(bottom * 10), 11):
        value = step / 10
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    for count, x in places.items():
        parts.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{count:,.0f}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">visual tokens kept</text>')
    heading = f"{measure} ({basis}; 95% intervals{f', axis from {bottom:.1f}' if bottom else ''})"
    parts.append(f'<text class="label" x="4" y="{TOP - 16}">{escape(heading)}</text>')
    reference = y(unpruned.accuracy.accuracy)
    if unpruned.accuracy.interval:
        low, high = map(y, unpruned.accuracy.interval)
        band = f'x="{LEFT}" width="{WIDTH - RIGHT - LEFT}" y="{high:.1f}" height="{low - high:.1f}"'
        parts.append(f'<rect class="band" {band}/>')
    parts.append(
        f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{reference:.1f}" y2="{reference:.1f}"/>'
    )
    label = f"unpruned, {unpruned.kept:,.0f}"
    labels = [(reference, "reference-label", label)]
    methods = list(dict.fromkeys(summary.setting.method for summary in pruned))
    for number, method in enumerate(methods):
        points = sorted((s for s in pruned if s.setting.method == method), key=lambda summary: summary.kept)
        kind = f"m{number}" if number < NUM_LINES else "other"
        shift = (number - (len(methods) - 1) / 2) * 5  # so that the intervals of methods do not hide each other
        line = " ".join(f"{places[s.kept] + shift:.1f},{y(s.accuracy.accuracy):.1f}" for s in points)
        parts.append(f'<g class="{kind}"><polyline points="{line}"/>')
        for summary in points:
            x, accuracy = places[summary.kept] + shift, summary.accuracy
            title = f"{summary.setting}: {accuracy.accuracy:.3f}"
            if accuracy.interval:
                low, high = accuracy.interval
                title += f" ({low:.3f} to {high:.3f})"
                parts.append(f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>')
            circle = f'<circle cx="{x:.1f}" cy="{y(accuracy.accuracy):.1f}" r="4">'
            parts.append(f"{circle}<title>{escape(title)}</title></circle>")
        parts.append("</g>")
        labels.append((y(points[-1].accuracy.accuracy), kind, method))
    parts += _place_labels(labels)
    return "".join([*parts, "</svg>"])


def _place_labels(labels: list[tuple[float, str, str]]) -> list[str]:
    """Names at the right end of lines, from the top down, so that no two overlap."""
    parts, last = list[str](), 0.0
    for height, kind, text in sorted(labels):
        last = max(height + 4, last + 16)
        parts.append(f'<text class="name {kind}" x="{WIDTH - RIGHT + 10}" y="{last:.1f}">{escape(text)}</text>')
    return parts
