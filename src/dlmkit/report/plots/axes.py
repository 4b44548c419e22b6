"""Scales, ticks and the frame around a chart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Scale:
    """A map from values in [low, high] to pixels in [start, end], linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`."""
        low, high, here = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round values in [low, high]."""
        return self._log_ticks() if self.log else self._linear_ticks(about)

    def _linear_ticks(self, about: int) -> list[float]:
        raw = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        decades = math.log10(self.high / self.low)
        if decades < 0.5:
            return self._linear_ticks(4)
        mantissas = (1.0, 2.0, 5.0) if decades < 2 else (1.0, 3.0) if decades < 4 else (1.0,)
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [mantissa * 10.0**power for power in powers for mantissa in mantissas]
        ticks = [tick for tick in ticks if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]
        return ticks if len(ticks) > 2 else self._linear_ticks(4)


@dataclass(frozen=True)
class Frame:
    """A chart's size and margins, in pixels."""

    width: int
    height: int
    left: int = 60
    right: int = 18
    top: int = 14
    bottom: int = 48

    def x_scale(self, values: Sequence[float], log: bool, from_zero: bool = True) -> Scale:
        """Return the horizontal scale that spans `values`; a linear one begins at zero unless `from_zero` is false."""
        low, high = min(values), max(values)
        if log:
            low, high = (low / 1.3, high * 1.3) if high / low < 1.05 else (low / 1.06, high * 1.06)
        elif from_zero:
            low, high = 0.0, high * 1.02 or 1.0
        else:
            low, high = padded(low, high)
        return Scale(low, high, self.left, self.width - self.right, log)

    def y_scale(self, values: Sequence[float]) -> Scale:
        """Return the vertical scale that spans `values`."""
        low, high = padded(min(values), max(values))
        return Scale(low, high, self.height - self.bottom, self.top)


def padded(low: float, high: float) -> tuple[float, float]:
    """Return a slightly wider range, and one that is not empty."""
    margin = 0.06 * (high - low) if high - low > 1e-9 * abs(high) else abs(high) * 0.1
    return (low - margin, high + margin) if margin else (-1.0, 1.0)


def grid(
    frame: Frame,
    x: Scale,
    y: Scale,
    labels: tuple[str, str],
    write_x: Callable[[float], str],
    about: tuple[int, int] = (5, 5),
) -> str:
    """Return grid lines, ticks and the names of both axes."""
    base, right = frame.height - frame.bottom, frame.width - frame.right
    parts = []
    y_ticks = y.ticks(about[1])
    for value in y_ticks:
        at = y(value)
        parts.append(f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(text(frame.left - 8, at + 4, decimals(value, y_ticks), "end"))
    for value in x.ticks(about[0]):
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{frame.top}" y2="{base}"/>')
        parts.append(text(at, base + 18, write_x(value), "middle"))
    parts.append(f'<line class="axis" x1="{frame.left}" x2="{right}" y1="{base}" y2="{base}"/>')
    parts.append(text((frame.left + right) / 2, frame.height - 8, labels[0], "middle", "name"))
    middle = (frame.top + base) / 2
    turned = f'<text class="name" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
    return "".join(parts) + f"{turned}{escape(labels[1])}</text>"


def text(x: float, y: float, content: str, anchor: str = "start", style: str = "") -> str:
    """Return an SVG text."""
    name = f' class="{style}"' if style else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def svg(frame: Frame, title: str, body: str) -> str:
    """Return the SVG element around `body`."""
    return (
        f'<svg viewBox="0 0 {frame.width} {frame.height}" role="img" aria-label="{escape(title)}"'
        f' data-left="{frame.left}" data-right="{frame.width - frame.right}">{body}</svg>'
    )


def decimals(value: float, ticks: Sequence[float]) -> str:
    """Return a tick's label with as many digits as the step between ticks needs."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else abs(value) or 1.0
    if abs(value) >= 1e4:
        return f"{value / 1000:,.6g}k"
    if 0 < step < 1e-3:
        return f"{value:.3g}" if value else "0"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
