"""Line charts as inline SVG, drawn here so that the page needs nothing from anywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dlmkit.report.words import count

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 14, 44


@dataclass(frozen=True)
class Series:
    """One line: its label, its colour's number (see the page's style) and its points, sorted by x."""

    label: str
    colour: int
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """A linear map from values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values between low and high."""
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[Series], small: bool = False) -> str:
    """Return an SVG figure; an empty string when there is nothing to draw."""
    series = [line for line in series if line.points]
    if not series:
        return ""
    width, height = (WIDTH * 2 // 3, HEIGHT * 2 // 3) if small else (WIDTH, HEIGHT)
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    x_axis = Axis(0.0, max(xs) or 1.0, LEFT, width - RIGHT)
    low, high = min(ys), max(ys)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    y_axis = Axis(low - margin, high + margin, height - BOTTOM, TOP)
    body = _grid(x_axis, y_axis, width, height, x_label, y_label) + "".join(
        _line(line, x_axis, y_axis, y_label, x_label) for line in series
    )
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{escape(title)}">{body}</svg></figure>'
    )


def _grid(x_axis: Axis, y_axis: Axis, width: int, height: int, x_label: str, y_label: str) -> str:
    parts = []
    for value in y_axis.ticks():
        y = y_axis(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(value)}</text>')
    for value in x_axis.ticks():
        x = x_axis(value)
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 18}" text-anchor="middle">{count(value)}</text>')
    base = height - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{width - RIGHT}" y1="{base}" y2="{base}"/>')
    middle = (LEFT + width - RIGHT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text class="label" transform="translate(13 {(TOP + base) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return "".join(parts)


def _line(line: Series, x_axis: Axis, y_axis: Axis, y_label: str, x_label: str) -> str:
    places = [(x_axis(x), y_axis(y)) for x, y in line.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    dashed = ' stroke-dasharray="5 4"' if line.dashed else ""
    dots = ""
    if len(places) <= 60:
        for (x, y), (value_x, value_y) in zip(places, line.points, strict=True):
            tip = f"{line.label}: {value_y:.4g} {y_label} at {count(value_x)} {x_label}"
            dots += f'<circle class="c{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
            dots += f"<title>{escape(tip)}</title></circle>"
    shape = f'<polyline class="s{line.colour}" points="{path}"{dashed}><title>{escape(line.label)}</title></polyline>'
    return f'<g class="series" data-run="{escape(line.label)}">{shape}{dots}</g>'


def _number(value: float) -> str:
    if value != 0 and (abs(value) >= 1e4 or abs(value) < 1e-2):
        return count(value) if abs(value) >= 1e4 else f"{value:.0e}"
    return f"{value:.4g}"
