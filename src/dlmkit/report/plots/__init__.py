"""Charts as inline SVG, drawn here so that the page needs nothing from anywhere.

Colours and weights are the page's style sheet's. Every line carries its points and their texts (`data-x`, `data-y`,
separated by `|`), from which the page's script makes tooltips.
"""

from dlmkit.report.plots.axes import Frame, Scale
from dlmkit.report.plots.lines import Link, Reference, Series, line_chart, thin
from dlmkit.report.plots.points import Interval, Spot, interval_chart, scatter_chart

__all__ = [
    "Frame",
    "Interval",
    "Link",
    "Reference",
    "Scale",
    "Series",
    "Spot",
    "interval_chart",
    "line_chart",
    "scatter_chart",
    "thin",
]
