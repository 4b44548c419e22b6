"""Line charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from dlmkit.report.load import Point
from dlmkit.report.plots.axes import Frame, Scale, grid, svg, text

MOST_DOTS = 60
MOST_LABELS = 9
LONGEST_LABEL = 22
LINE_HEIGHT = 15


@dataclass(frozen=True)
class Series:
    """One line: its label, its look (class names of the page's style sheet) and its points, sorted by x.

    `hollow` dots mark bounds, filled ones exact values.
    """

    label: str
    look: str
    points: Sequence[Point]
    hollow: bool = False


@dataclass(frozen=True)
class Link:
    """A dotted line from the end of one run's curve to the begin of another's, which started from it."""

    label: str
    look: str
    start: Point
    end: Point


@dataclass(frozen=True)
class Reference:
    """A horizontal line at a known value."""

    y: float
    label: str


def line_chart(
    title: str,
    labels: tuple[str, str],
    series: Sequence[Series],
    frame: Frame,
    write: tuple[Callable[[float], str], Callable[[float], str]],
    log: bool = False,
    links: Sequence[Link] = (),
    references: Sequence[Reference] = (),
    named: bool = False,
    dots: bool = True,
) -> str:
    """Return an SVG; an empty string when there is nothing to draw.

    Args:
        title: for those who cannot see it.
        labels: of the x and y axis.
        series: the lines.
        frame: size and margins.
        write: how an x is written on the axis, and how in a tooltip.
        log: whether x is logarithmic; points at x = 0 are left out then.
        links: dotted lines between series.
        references: horizontal lines.
        named: whether lines carry their labels at their ends.
        dots: whether points are marked, unless they are too many.
    """
    lines = [(line, [p for p in line.points if p.x > 0 or not log]) for line in series]
    points = [point for _, kept in lines for point in kept]
    if not points:
        return ""
    x = frame.x_scale([point.x for point in points], log)
    y = frame.y_scale([*_heights(points), *(reference.y for reference in references)])
    body = grid(frame, x, y, labels, write[0], (4, 4) if frame.width < 500 else (6, 6))
    body += "".join(_reference(reference, frame, y) for reference in references)
    body += "".join(_link(link, x, y) for link in links)
    body += "".join(_line(line, kept, x, y, write[1], dots and len(kept) <= MOST_DOTS) for line, kept in lines if kept)
    if named and len(lines) <= MOST_LABELS:
        body += _end_labels([(line, kept[-1]) for line, kept in lines if kept], x, y)
    return svg(frame, title, body)


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most `most` points, each the mean of as many neighbours: noisy curves of any length stay readable."""
    if len(points) <= most:
        return list(points)
    edges = [len(points) * number // most for number in range(most + 1)]
    groups = [points[left:right] for left, right in pairwise(edges)]
    return [Point(sum(p.x for p in group) / len(group), sum(p.y for p in group) / len(group)) for group in groups]


def _heights(points: Sequence[Point]) -> list[float]:
    """Return what the y axis has to hold: points with their error bars."""
    return [point.y + sign * (point.stderr or 0.0) for point in points for sign in (-1, 1)]


def _reference(reference: Reference, frame: Frame, y: Scale) -> str:
    at, right = y(reference.y), frame.width - frame.right
    line = f'<line class="reference" x1="{frame.left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>'
    return line + text(frame.left + 6, at - 5, reference.label, style="halo")


def _link(link: Link, x: Scale, y: Scale) -> str:
    if x.log and link.start.x <= 0:
        return ""
    ends = f'x1="{x(link.start.x):.1f}" y1="{y(link.start.y):.1f}" x2="{x(link.end.x):.1f}" y2="{y(link.end.y):.1f}"'
    return f'<g class="series {link.look}" data-run="{escape(link.label)}"><line class="link" {ends}/></g>'


def _line(
    line: Series, points: Sequence[Point], x: Scale, y: Scale, write: Callable[[float], str], marked: bool
) -> str:
    places = [(x(point.x), y(point.y)) for point in points]
    path = " ".join(f"{left:.1f},{top:.1f}" for left, top in places)
    texts_x = "|".join(write(point.x) for point in points)
    texts_y = "|".join(point_text(point) for point in points)
    shape = (
        f'<polyline points="{path}" data-x="{escape(texts_x)}" data-y="{escape(texts_y)}">'
        f"<title>{escape(line.label)}</title></polyline>"
    )
    bars = "".join(_bar(point, x, y) for point in points if point.stderr and marked)
    radius = 3.2 if len(points) <= MOST_DOTS // 2 else 2.2
    kind = "dot hollow" if line.hollow else "dot"
    dots = "".join(f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>' for a, b in places)
    return f'<g class="series {line.look}" data-run="{escape(line.label)}">{bars}{shape}{dots if marked else ""}</g>'


def _bar(point: Point, x: Scale, y: Scale) -> str:
    assert point.stderr is not None
    at = x(point.x)
    top, bottom = y(point.y + point.stderr), y(point.y - point.stderr)
    return f'<line class="bar" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>'


def _end_labels(ends: list[tuple[Series, Point]], x: Scale, y: Scale) -> str:
    """Name lines where they end, pushing labels apart that would cover one another."""
    parts: list[str] = []
    taken: list[tuple[float, float, float]] = []
    for line, point in sorted(ends, key=lambda end: y(end[1].y)):
        left, top = x(point.x) + 9, y(point.y) + 4
        name = shortened(line.label)
        for other_left, other_right, other_top in taken:
            beside = other_left < left + 7 * len(name) and left < other_right
            if beside and top < other_top + LINE_HEIGHT:
                top = other_top + LINE_HEIGHT
        taken.append((left, left + 7 * len(name), top))
        label = text(left, top, name, style="halo end")
        parts.append(f'<g class="series {line.look}" data-run="{escape(line.label)}">{label}</g>')
    return "".join(parts)


def label_room(labels: Sequence[str], letter: float = 7, most: int = LONGEST_LABEL) -> int:
    """Return the margin that the longest label needs, in pixels; `letter` is a letter's width."""
    return round(20 + letter * max((len(shortened(label, most)) for label in labels), default=0))


def shortened(label: str, most: int = LONGEST_LABEL) -> str:
    """Return a label that fits beside a line; its end tells runs of a sweep apart, so its begin is cut."""
    return label if len(label) <= most else "\u2026" + label[-most + 1 :]


def point_text(point: Point) -> str:
    """Return a value for a tooltip."""
    value = (
        f"{point.y:.3f}" if 0.1 <= abs(point.y) < 1000 else f"{point.y:,.0f}" if point.y >= 1000 else f"{point.y:.3g}"
    )
    return value if point.stderr is None else f"{value} \u00b1 {point.stderr:.3f}"
