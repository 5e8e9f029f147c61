"""Pictures for the report as SVG text: bars with error bars, curves, histograms. Colours are the page's variables."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH = 640
_LEFT, _RIGHT, _ROW = 190, 92, 30
N_COLOURS = 6  # the page has --c0 to --c5


class Bar(NamedTuple):
    """A value from 0 to 1 with its error; `dots` are single runs behind it."""

    label: str
    value: float
    error: float
    colour: int = 0
    dots: tuple[float, ...] = ()


class Curve(NamedTuple):
    points: Sequence[tuple[float, float]]
    colour: int = 0


def bars(rows: Sequence[Bar], *, title: str) -> str:
    """Horizontal bars on a scale from 0 to 100 %, one a row, with ± one error."""
    height, scale = len(rows) * _ROW + 34, WIDTH - _LEFT - _RIGHT
    parts = [_open(height, title)]
    for percent in range(0, 101, 25):
        x = _LEFT + scale * percent / 100
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{height - 24}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{percent}</text>')
    for number, row in enumerate(rows):
        y, end = 8 + number * _ROW, _LEFT + scale * row.value
        low, high = (_LEFT + scale * min(1.0, max(0.0, row.value + sign * row.error)) for sign in (-1, 1))
        middle = y + _ROW / 2 - 2
        parts += [
            f'<text class="label" x="{_LEFT - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(row.label)}</text>',
            f'<rect x="{_LEFT}" y="{y + 3}" width="{max(end - _LEFT, 0):.1f}" height="{_ROW - 10}" rx="2" '
            f'fill="var(--c{row.colour % N_COLOURS})" opacity="0.85"/>',
            f'<path class="error" d="M{low:.1f} {middle}H{high:.1f}'
            f'M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"/>',
        ]
        parts += [f'<circle class="dot" cx="{_LEFT + scale * dot:.1f}" cy="{middle}" r="2.5"/>' for dot in row.dots]
        said = f"{100 * row.value:.1f} ± {100 * row.error:.1f}"
        parts.append(f'<text class="value" x="{max(high, end) + 6:.1f}" y="{middle + 4:.1f}">{said}</text>')
    return "".join([*parts, "</svg>"])


def curves(lines: Sequence[Curve], *, title: str, height: int = 170) -> str:
    """Lines over optimiser steps, smoothed points faint behind; "" if there is nothing to draw."""
    points = [point for line in lines for point in line.points if math.isfinite(point[1])]
    if not points:
        return ""
    xs, ys = zip(*points, strict=True)
    low, high = _nice(min(ys), max(ys))
    left, right, top, bottom = 56, 12, 8, 24
    width, tall = 320 - left - right, height - top - bottom
    span = max(max(xs) - min(xs), 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - min(xs)) / span, top + tall * (1 - (y - low) / (high - low))

    parts = [_open(height, title, width=320)]
    for step in range(3):
        value = low + (high - low) * step / 2
        _, y = place(min(xs), value)
        parts.append(f'<line class="grid" x1="{left}" x2="{320 - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value)}</text>')
    for x, anchor in ((min(xs), "start"), (max(xs), "end")):
        at, _ = place(x, low)
        parts.append(f'<text class="tick" x="{at:.1f}" y="{height - 6}" text-anchor="{anchor}">{_short(x)}</text>')
    for line in lines:
        drawn = [point for point in line.points if math.isfinite(point[1])]
        colour = f"var(--c{line.colour % N_COLOURS})"
        if len(drawn) > 12:
            parts.append(f'<path class="faint" stroke="{colour}" d="{_path([place(*one) for one in drawn])}"/>')
        smooth = _smoothed(drawn) if len(drawn) > 12 else drawn
        parts.append(f'<path class="line" stroke="{colour}" d="{_path([place(*one) for one in smooth])}"/>')
        if len(drawn) <= 12:
            circles = [place(*one) for one in drawn]
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in circles]
    return "".join([*parts, "</svg>"])


def histogram(groups: Sequence[tuple[str, Sequence[float], int]], *, title: str, bins: int = 24) -> str:
    """Counts of one or several groups of numbers (name, numbers, colour) in bins of equal width, side by side."""
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
    parts = [_open(height, title, width=320)]
    parts.append(f'<text class="tick" x="{left - 6}" y="16" text-anchor="end">{_short(most)}</text>')
    for place, ((_, _, colour), counts) in enumerate(zip(groups, counted, strict=True)):
        wide = scale / bins / len(groups)
        for number, count in enumerate(counts):
            if count:
                tall = (height - bottom - 8) * count / most
                x = left + scale * number / bins + place * wide
                parts.append(
                    f'<rect x="{x:.1f}" y="{height - bottom - tall:.1f}" width="{max(wide - 0.6, 0.6):.1f}" '
                    f'height="{tall:.1f}" fill="var(--c{colour % N_COLOURS})"/>'
                )
    for value, anchor, x in ((low, "start", left), (high, "end", left + scale)):
        parts.append(f'<text class="tick" x="{x}" y="{height - 6}" text-anchor="{anchor}">{_short(value)}</text>')
    return "".join([*parts, "</svg>"])


def _open(height: int, title: str, *, width: int = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each value as the mean of its neighbours within a twentieth of the whole."""
    reach = max(1, len(points) // 20)
    found = []
    for place, (x, _) in enumerate(points):
        near = points[max(0, place - reach) : place + reach + 1]
        found.append((x, sum(y for _, y in near) / len(near)))
    return found


def _nice(low: float, high: float) -> tuple[float, float]:
    """Bounds that hold the values, with some air; a flat line gets a scale around it."""
    if high - low < 1e-12 + 1e-6 * abs(high):
        reach = 0.1 * abs(high)
        return (low - reach, high + reach) if reach else (0.0, 1.0)
    air = 0.04 * (high - low)
    return (0.0 if 0 <= low < 0.2 * high else low - air), high + air


def _short(value: float) -> str:
    if value and (abs(value) < 0.001 or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
