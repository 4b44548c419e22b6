"""The page's charts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from dlmkit.report.compare import comparable, identity, validation_curve
from dlmkit.report.formatting import count, marked, power, scientific, short_count, thousands
from dlmkit.report.load import Budget, Point, Run, parent_of
from dlmkit.report.plots import (
    Frame,
    Interval,
    Link,
    Reference,
    Series,
    Spot,
    interval_chart,
    line_chart,
    scatter_chart,
    thin,
)
from dlmkit.report.plots.lines import label_room
from dlmkit.runs import RunSummary

COLOURS = 8
DASHES = 3
MOST_POINTS = 90
NATS = "nats/token"

Write = Callable[[float], str]
BUDGETS: tuple[tuple[Budget, str, Write, Write], ...] = (
    ("total_tokens", "total tokens", short_count, count),
    ("total_flops", "total training FLOPs", power, scientific),
)

SMALL_PLOTS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("train/loss",), "Training loss (what is minimised)", "loss"),
    (("train/tokens_per_second", "train/device/items_per_sec"), "Speed", "tokens/s"),
    (("train/mfu", "train/device/mfu"), "Model FLOPs utilisation (MFU)", "share of peak"),
    (("train/grad_norm",), "Gradient norm, before clipping", "norm"),
    (("lr", "lr-*"), "Learning rate", "rate"),
    (("attention_ratio",), "Attention to later positions (annealing)", "share"),
)
"""Names of a column, of which the first that exists is used; title; unit."""

Cost = Callable[[RunSummary], float | None]
COSTS: tuple[tuple[Cost, str, Write, Write, bool], ...] = (
    (lambda summary: summary.total_flops, "total training FLOPs", power, scientific, True),
    (lambda summary: summary.params, "parameters", short_count, count, True),
    (lambda summary: summary.peak_memory_bytes / 2**20, "peak memory, MiB", thousands, thousands, True),
    (lambda summary: summary.tokens_per_second, "training speed, tokens/s", short_count, thousands, False),
)
"""What a run cost, its name, how it is written on the axis and in a tooltip, whether less is better."""


def looks(runs: Sequence[Run]) -> dict[str, str]:
    """Return the style classes of each run: seeds of one configuration share a colour; dashes when colours run out."""
    kinds: dict[str, int] = {}
    found = {}
    for run in sorted(runs, key=lambda run: run.label):
        number = kinds.setdefault(identity(run), len(kinds))
        dash = "open" if not run.finished else f"d{number // COLOURS % DASHES}"
        found[run.label] = f"k{number % COLOURS} {dash}"
    return found


def likelihood_figure(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    """Return the final values side by side."""
    intervals = [
        Interval(
            run.label,
            look[run.label],
            run.val_nll,
            run.val_nll_stderr,
            marked(run.exact, run.val_nll, run.val_nll_stderr),
            not run.exact,
        )
        for run in comparable(runs)
    ]
    if not intervals:
        return ""
    return interval_chart("final validation of each run", f"{NATS}, lower is better", intervals, _entropies(runs))


def curve_figures(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    """Return the large charts: validation and training, against tokens and FLOPs, on linear and logarithmic axes."""
    figures = []
    for budget, name, short, long in BUDGETS:
        variants = [
            (f"{kind} {'log' if log else 'linear'}", _large(runs, look, budget, name, (short, long), kind, log))
            for kind in ("validation", "training")
            for log in (False, True)
        ]
        shown = "".join(f'<div class="variant {kind}">{chart}</div>' for kind, chart in variants if chart)
        if shown:
            figures.append(f"<figure><figcaption>Against {name}</figcaption>{shown}</figure>")
    return "".join(figures)


def small_figures(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    """Return the other curves that exist, each as a small chart."""
    frame = Frame(430, 250, 66, 14, 12, 44)
    figures = []
    for columns, title, unit in SMALL_PLOTS:
        series = [
            Series(run.label, look[run.label], thin(run.against("total_tokens", column), MOST_POINTS), not run.exact)
            for run in runs
            if (column := _column(run, columns)) is not None
        ]
        chart = line_chart(title, ("total tokens", unit), series, frame, (short_count, count), dots=False)
        if chart:
            figures.append(f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>")
    return "".join(figures)


def cost_figures(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    """Return what each run cost against what it reached, for costs in which the runs differ."""
    figures = []
    for cost_of, name, short, long, less in COSTS:
        paid = [(run, cost) for run in comparable(runs) if (cost := cost_of(run.summary))]
        if len(paid) < 3 or max(cost for _, cost in paid) / min(cost for _, cost in paid) < 1.02:
            continue
        spots = [
            Spot(
                run.label,
                look[run.label],
                Point(cost, run.val_nll),
                (f"{marked(run.exact, run.val_nll, run.val_nll_stderr)} {NATS}", f"{long(cost)} {name}"),
                not run.exact,
            )
            for run, cost in paid
        ]
        chart = scatter_chart(f"NLL against {name}", (name, NATS), spots, Frame(430, 280, 58, 18, 14, 46), short, less)
        better = "less" if less else "more"
        figures.append(
            f'<figure class="spots"><figcaption>Against {name} ({better} is better)</figcaption>{chart}</figure>'
        )
    return "".join(figures)


def _large(
    runs: Sequence[Run],
    look: Mapping[str, str],
    budget: Budget,
    name: str,
    write: tuple[Write, Write],
    kind: str,
    log: bool,
) -> str:
    curves = {run.label: _curve(run, budget, kind) for run in runs}
    series = [Series(run.label, look[run.label], curves[run.label], not run.exact) for run in runs]
    links = _links(runs, look, curves) if kind == "validation" else ()
    room = label_room([run.label for run in runs]) if len(runs) <= COLOURS else 18
    frame = Frame(660, 400, 58, max(18, min(room, 175)), 14, 50)
    unit = f"{kind} NLL or bound, {NATS}"
    title = f"{unit}, against {name}"
    return line_chart(
        title, (name, unit), series, frame, write, log, links, _entropies(runs), named=True, dots=kind == "validation"
    )


def _curve(run: Run, budget: Budget, kind: str) -> list[Point]:
    return (
        validation_curve(run, budget) if kind == "validation" else thin(run.against(budget, "train/nll"), MOST_POINTS)
    )


def _links(runs: Sequence[Run], look: Mapping[str, str], curves: Mapping[str, list[Point]]) -> list[Link]:
    links = []
    for run in runs:
        parent = parent_of(run, runs)
        if parent is not None and curves[parent.label] and curves[run.label]:
            links.append(Link(run.label, look[run.label], curves[parent.label][-1], curves[run.label][0]))
    return links


def _entropies(runs: Sequence[Run]) -> list[Reference]:
    known = {run.summary.entropy_per_token for run in comparable(runs)}
    return [Reference(value, f"entropy of the source {value:.3f}") for value in known if value is not None]


def _column(run: Run, names: Sequence[str]) -> str | None:
    for name in names:
        found = [
            column for column in run.curves if column == name or (name[-1] == "*" and column.startswith(name[:-1]))
        ]
        if found:
            return min(found)
    return None
