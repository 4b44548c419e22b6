"""Charts of one point per run: intervals side by side, and cost against result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from dlmkit.report.load import Point
from dlmkit.report.plots.axes import Frame, Scale, decimals, grid, padded, svg, text
from dlmkit.report.plots.lines import Reference, label_room, shortened

ROW = 34
ARROW = 30
LONGEST_ROW = 40
LETTER = 7


@dataclass(frozen=True)
class Interval:
    """A value with its standard error; `bound` draws an arrow to where the true value may lie."""

    label: str
    look: str
    value: float
    stderr: float
    text: str
    bound: bool


@dataclass(frozen=True)
class Spot:
    """A point of a scatter plot: `tooltip` has its texts for y and x."""

    label: str
    look: str
    point: Point
    tooltip: tuple[str, str]
    hollow: bool


def interval_chart(title: str, name: str, intervals: Sequence[Interval], references: Sequence[Reference] = ()) -> str:
    """Return an SVG with a row per interval; `references` are vertical lines."""
    left, right = label_room([interval.label for interval in intervals], 8.2, LONGEST_ROW), 40
    top = 26 if references else 8
    frame = Frame(920, top + ROW * len(intervals) + 46, left, right, top, 46)
    ends = [end for i in intervals for end in (i.value - i.stderr, i.value + i.stderr)] + [r.y for r in references]
    low, high = padded(min(ends), max(ends))
    # Room for the arrows at the left, and for the numbers, which stand to the right of their points.
    x = Scale(low, high, frame.left + ARROW + 10, frame.width - frame.right - 140)
    base = frame.height - frame.bottom
    ticks = x.ticks(8)
    parts = [
        f'<line class="grid" x1="{x(t):.1f}" x2="{x(t):.1f}" y1="{top}" y2="{base}"/>'
        + text(x(t), base + 18, decimals(t, ticks), "middle")
        for t in ticks
    ]
    parts.append(f'<line class="axis" x1="{left}" x2="{frame.width - right}" y1="{base}" y2="{base}"/>')
    parts.append(text((left + frame.width - right) / 2, frame.height - 8, name, "middle", "name"))
    for reference in references:
        at = x(reference.y)
        parts.append(f'<line class="reference" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{base}"/>')
        parts.append(text(at, top - 9, reference.label, "middle"))
    parts += [_interval(interval, frame, x, top + ROW * (row + 0.5)) for row, interval in enumerate(intervals)]
    return svg(frame, title, "".join(parts))


def scatter_chart(
    title: str,
    labels: tuple[str, str],
    spots: Sequence[Spot],
    frame: Frame,
    write: Callable[[float], str],
    lower_is_cheaper: bool = True,
) -> str:
    """Return an SVG: cost (logarithmic) against result, and the front of runs that none beats in both."""
    x = frame.x_scale([spot.point.x for spot in spots], log=True)
    y = frame.y_scale([spot.point.y for spot in spots])
    body = grid(frame, x, y, labels, write, (4, 4)) + _front([spot.point for spot in spots], x, y, lower_is_cheaper)
    places = [(x(spot.point.x), y(spot.point.y)) for spot in spots]
    names = _names([spot.label for spot in spots], places, frame)
    for spot, place, name in zip(spots, places, names, strict=True):
        body += _spot(spot.label, spot.look, place, spot.tooltip, spot.hollow, name)
    return svg(frame, title, body)


def _names(labels: Sequence[str], places: Sequence[tuple[float, float]], frame: Frame) -> list[str]:
    """Return each point's label, to the right or to the left of it, or none where it would cover another one."""
    taken = [(left - 6, left + 6, top) for left, top in places]
    names = []
    for label, (left, top) in zip(labels, places, strict=True):
        short = shortened(label)
        width = LETTER * len(short)
        name = ""
        for anchor, shift, begin in (("start", 9, left + 7), ("end", -9, left - 7 - width)):
            inside = begin > frame.left and begin + width < frame.width
            covers = any(begin < end and start < begin + width and abs(top - row) < 13 for start, end, row in taken)
            if inside and not covers:
                name = text(left + shift, top + 4, short, anchor, "halo")
                taken.append((begin, begin + width, top))
                break
        names.append(name)
    return names


def front(points: Sequence[Point], lower_is_cheaper: bool = True) -> list[Point]:
    """Return the points that no other one beats in both x and y (lower y is better), cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.x if lower_is_cheaper else -p.x, p.y)):
        if not kept or point.y < kept[-1].y:
            kept.append(point)
    return kept


def _front(points: Sequence[Point], x: Scale, y: Scale, lower_is_cheaper: bool) -> str:
    places: list[tuple[float, float]] = []
    for point in front(points, lower_is_cheaper):
        if places:
            places.append((x(point.x), places[-1][1]))  # until then, the cheaper run is the best
        places.append((x(point.x), y(point.y)))
    path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
    return f'<polyline class="front" points="{path}"/>'


def _interval(interval: Interval, frame: Frame, x: Scale, middle: float) -> str:
    at, low, high = (x(interval.value + sign * interval.stderr) for sign in (0, -1, 1))
    line = f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{middle}" y2="{middle}"/>'
    bar = f'<line class="bar wide" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
    arrow = ""
    if interval.bound:
        tip = at - ARROW
        arrow = f'<path class="arrow" d="M{at:.1f} {middle}H{tip:.1f}m6 -4.5l-6 4.5l6 4.5"/>'
    name = text(frame.left - 12, middle + 4, shortened(interval.label, LONGEST_ROW), "end", "row")
    value = text(max(at, high) + 14, middle + 4, interval.text, style="halo row")
    return line + _spot(
        interval.label, interval.look, (at, middle), (interval.text, ""), interval.bound, name + value, arrow + bar, 6
    )


def _spot(
    label: str,
    look: str,
    place: tuple[float, float],
    tooltip: tuple[str, str],
    hollow: bool,
    after: str,
    before: str = "",
    radius: float = 5,
) -> str:
    left, top = place
    target = f'<polyline points="{left:.1f},{top:.1f}" data-x="{escape(tooltip[1])}" data-y="{escape(tooltip[0])}"/>'
    dot = f'<circle class="dot{" hollow" if hollow else ""}" cx="{left:.1f}" cy="{top:.1f}" r="{radius}"/>'
    return f'<g class="series {look}" data-run="{escape(label)}">{before}{target}{dot}{after}</g>'
