"""Draws the report's charts as SVG text: bars with error bars, curves and histograms.

Colours are the page's variables.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_BAR = 20  # the height of a bar


class BarForm(NamedTuple):
    """The measures of a bar chart: its width, the margins left and right of the scale, and the height of a row."""

    width: int
    left: int
    right: int
    row: int
    label_height: int  # above the bar
    label_characters: int


WIDE = BarForm(width=640, left=190, right=92, row=30, label_height=0, label_characters=24)
NARROW = BarForm(width=340, left=8, right=92, row=48, label_height=18, label_characters=45)
N_COLOURS = 6  # the page has --c0 to --c5


class Bar(NamedTuple):
    """A bar of a chart: a value from 0 to 1 with its error. `dots` are the values of single runs."""

    label: str
    value: float
    error: float
    colour: int = 0
    dots: tuple[float, ...] = ()


class Curve(NamedTuple):
    """A curve of a chart: the points (step, value) of one line."""

    points: Sequence[tuple[float, float]]
    colour: int = 0


def draw_bars(rows: Sequence[Bar], *, title: str, narrow: bool = False) -> str:
    """Draws an SVG chart of horizontal bars on a scale from 0 to 100 %, with error bars of one standard error.

    `narrow`: for a phone, with each label above its bar.
    """
    form = NARROW if narrow else WIDE
    height, scale = len(rows) * form.row + 34, form.width - form.left - form.right
    parts = [_open_svg(height, title, width=form.width)]
    for percent in range(0, 101, 25):
        x = form.left + scale * percent / 100
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{height - 24}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{percent}</text>')
    for number, row in enumerate(rows):
        y, end = 8 + number * form.row + form.label_height, form.left + scale * row.value
        low, high = (form.left + scale * min(1.0, max(0.0, row.value + sign * row.error)) for sign in (-1, 1))
        middle = y + _BAR / 2 + 3
        label_place = (
            f'x="{form.left}" y="{y - 3}"' if narrow else f'x="{form.left - 8}" y="{middle + 4:.1f}" text-anchor="end"'
        )
        parts += [
            f'<text class="label" {label_place}>{escape(_shorten_label(row.label, form.label_characters))}</text>',
            f'<rect x="{form.left}" y="{y + 3}" width="{max(end - form.left, 0):.1f}" height="{_BAR}" rx="2" '
            f'fill="var(--c{row.colour % N_COLOURS})" opacity="0.85"/>',
            f'<path class="error" d="M{low:.1f} {middle}H{high:.1f}'
            f'M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"/>',
        ]
        parts += [f'<circle class="dot" cx="{form.left + scale * dot:.1f}" cy="{middle}" r="2.5"/>' for dot in row.dots]
        label = f"{100 * row.value:.1f} ± {100 * row.error:.1f}"
        parts.append(f'<text class="value" x="{max(high, end) + 6:.1f}" y="{middle + 4:.1f}">{label}</text>')
    return "".join([*parts, "</svg>"])


def _shorten_label(text: str, n_characters: int) -> str:
    """Cuts the middle out of a label that has no room: its end says how the model was asked."""
    if len(text) <= n_characters:
        return text
    n_begin = n_characters // 3
    return f"{text[:n_begin]}…{text[n_begin + 1 - n_characters :]}"


def draw_curves(lines: Sequence[Curve], *, title: str, height: int = 170) -> str:
    """Draws an SVG chart of smoothed curves over optimiser steps, with the raw points faint behind.

    Returns "" if there is nothing to draw.
    """
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    low, high = choose_axis_bounds(min(ys), max(ys))
    left, right, top, bottom = 56, 12, 8, 24
    width, tall = 320 - left - right, height - top - bottom
    span = max(max(xs) - min(xs), 1)

    def locate(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - min(xs)) / span, top + tall * (1 - (y - low) / (high - low))

    parts = [_open_svg(height, title, width=320)]
    for step in range(3):
        value = low + (high - low) * step / 2
        _, y = locate(min(xs), value)
        parts.append(f'<line class="grid" x1="{left}" x2="{320 - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_format_tick(value)}</text>'
        )
    for x, anchor in ((min(xs), "start"), (max(xs), "end"))[: len({*xs})]:  # one step alone is named once
        at, _ = locate(x, low)
        parts.append(
            f'<text class="tick" x="{at:.1f}" y="{height - 6}" text-anchor="{anchor}">{_format_tick(x)}</text>'
        )
    for line in lines:
        drawn = [point for point in line.points if math.isfinite(point[1])]
        colour = f"var(--c{line.colour % N_COLOURS})"
        if len(drawn) > 12:
            parts.append(
                f'<path class="faint" stroke="{colour}" d="{_format_path([locate(*point) for point in drawn])}"/>'
            )
        smooth = smooth_points(drawn) if len(drawn) > 12 else drawn
        parts.append(f'<path class="line" stroke="{colour}" d="{_format_path([locate(*point) for point in smooth])}"/>')
        if len(drawn) <= 12:
            circles = [locate(*point) for point in drawn]
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in circles]
    return "".join([*parts, "</svg>"])


def draw_histogram(groups: Sequence[tuple[str, Sequence[float], int]], *, title: str, bins: int = 24) -> str:
    """Draws an SVG histogram with bins of equal width, groups (name, numbers, colour) side by side."""
    values = [value for _, numbers, _ in groups for value in numbers]
    if not values:
        return ""
    low, high = min(values), max(values)
    if all(float(value).is_integer() for value in values):
        bins = min(bins, int(high - low) + 1)
    width = (high - low) / bins or 1.0
    height, left, bottom = 150, 40, 24
    scale = 320 - left - 10
    counted = []
    for _, numbers, _ in groups:
        counts = [0] * bins
        for value in numbers:
            counts[min(bins - 1, int((value - low) / width))] += 1
        counted.append(counts)
    most = max(max(counts) for counts in counted)
    parts = [_open_svg(height, title, width=320)]
    parts.append(f'<text class="tick" x="{left - 6}" y="16" text-anchor="end">{_format_tick(most)}</text>')
    for index, ((_, _, colour), counts) in enumerate(zip(groups, counted, strict=True)):
        wide = scale / bins / len(groups)
        for number, count in enumerate(counts):
            if count:
                tall = (height - bottom - 8) * count / most
                x = left + scale * number / bins + index * wide
                parts.append(
                    f'<rect x="{x:.1f}" y="{height - bottom - tall:.1f}" width="{max(wide - 0.6, 0.6):.1f}" '
                    f'height="{tall:.1f}" fill="var(--c{colour % N_COLOURS})"/>'
                )
    for value, anchor, x in ((low, "start", left), (high, "end", left + scale))[: len({*values})]:
        parts.append(f'<text class="tick" x="{x}" y="{height - 6}" text-anchor="{anchor}">{_format_tick(value)}</text>')
    return "".join([*parts, "</svg>"])


def _open_svg(height: int, title: str, *, width: int) -> str:
    """Returns the opening SVG tag of a chart, with its title for screen readers."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _format_path(points: Sequence[tuple[float, float]]) -> str:
    """Formats points as the path data of an SVG path."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def smooth_points(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Smooths a curve by replacing each value by the mean of its neighbours.

    Neighbours are within a twentieth of the curve's length.
    """
    reach = max(1, len(points) // 20)
    smoothed = []
    for index, (x, _) in enumerate(points):
        near = points[max(0, index - reach) : index + reach + 1]
        smoothed.append((x, sum(y for _, y in near) / len(near)))
    return smoothed


def choose_axis_bounds(low: float, high: float) -> tuple[float, float]:
    """Returns lower and upper bounds of a chart axis that hold all values with a margin.

    A constant line gets a margin too.

    A constant line gets a margin too.
    """
    if high - low < 1e-12 + 1e-6 * abs(high):
        reach = 0.1 * abs(high)
        return (low - reach, high + reach) if reach else (0.0, 1.0)
    margin = 0.04 * (high - low)
    return (0.0 if 0 <= low < 0.2 * high else low - margin), high + margin


def _format_tick(value: float) -> str:
    """Formats the number beside an axis tick as short text."""
    if value and (abs(value) < 0.001 or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"
