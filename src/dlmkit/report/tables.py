"""The tables, for the terminal and the page alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dlmkit.report.compare import SeedGroup, ValueAtBudget, comparable, equal_budget, seed_groups
from dlmkit.report.formatting import (
    DASH,
    count,
    duration,
    marked,
    perplexity,
    scientific,
    sign_of,
    size,
    thousands,
    tokens_of,
)
from dlmkit.report.load import Budget, Run

BUDGETS: tuple[tuple[Budget, str, Callable[[float], str]], ...] = (
    ("total_tokens", "At equal total tokens", count),
    ("total_flops", "At equal total FLOPs", scientific),
)
"""Budget, title of its table, and how an amount is written."""

BOUNDS_NOTE = (
    "Bounds (\u2264) are upper bounds on the NLL, exact values (=) are not: a bound above an exact value does not"
    " prove a worse model."
)
RESULTS_NOTE = (
    "\u00b1 is one standard error over validation sequences, propagated to perplexity and bits per byte to first"
    " order. Tokens and FLOPs count the run that a run started from."
)
EXCESS_NOTE = "The source's entropy is known, so the excess over it is the true error (of a bound: at most that)."
BUDGET_NOTE = (
    "Nats per token at the same total budget, the run that a run started from counted in. Plain: a run's final"
    " validation (budgets within 1% of one another count as the same). With *: interpolated on the run's curve, linear"
    " in log budget between two validations, in the middle of its learning-rate schedule; a run trained for exactly"
    f" that budget usually does better. {DASH}: outside the curve's range; nothing is extrapolated."
)
SEED_NOTE = (
    "Mean \u00b1 standard error over runs that differ in nothing but the seed: it contains the spread between"
    " trainings, where the \u00b1 of a single run contains only that between validation sequences."
)


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, and the value to sort by (a text without one sorts by itself)."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Table:
    """A table. The first column names the row; `runs` holds the label of each row's run, where it has one."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    runs: tuple[str | None, ...]
    note: str


def run_table(runs: Sequence[Run]) -> Table:
    """Return the big table: a row per run, what it reached and what it cost."""
    with_entropy = any(run.summary.entropy_per_token is not None for run in runs)
    columns = ["run", "NLL, nats/token", "perplexity", "bits/byte", "own + before = total tokens", "total FLOPs"]
    columns += ["parameters", "precision", "tokens/s", "peak memory", "wall time", "seed"]
    rows = [[Cell(run.label), *_results(run), *_costs(run)] for run in runs]
    if with_entropy:
        columns.insert(2, "above entropy")
        for run, row in zip(runs, rows, strict=True):
            row.insert(2, _excess(run))
    note = RESULTS_NOTE + (f" {EXCESS_NOTE}" if with_entropy else "")
    return Table("Held-out likelihood", tuple(columns), tuple(map(tuple, rows)), tuple(run.label for run in runs), note)


def budget_tables(runs: Sequence[Run]) -> list[Table]:
    """Return the comparisons at equal total tokens and at equal total FLOPs, where there are any."""
    tables = []
    for budget, title, write in BUDGETS:
        budgets = equal_budget(runs, budget)
        if budgets:
            compared = comparable(runs)
            rows = tuple(
                (Cell(run.label), *(_value_cell(at.values[run.label], run.exact) for at in budgets)) for run in compared
            )
            columns = ("run", *(f"at {write(at.amount)}" for at in budgets))
            tables.append(Table(title, columns, rows, tuple(run.label for run in compared), ""))
    return [*tables[:-1], *(replace(table, note=BUDGET_NOTE) for table in tables[-1:])]  # once, below both


def seed_table(runs: Sequence[Run]) -> Table | None:
    """Return the table over seeds, if any runs differ in nothing but the seed."""
    groups = seed_groups(runs)
    if not groups:
        return None
    columns = ["configuration", "seeds", "mean NLL, nats/token", "perplexity of the mean", "single runs"]
    rows = [_seed_row(group) for group in groups]
    if any(group.runs[0].summary.entropy_per_token is not None for group in groups):
        columns.insert(3, "above entropy")
        for group, row in zip(groups, rows, strict=True):
            entropy = group.runs[0].summary.entropy_per_token
            excess = math.nan if entropy is None else group.mean - entropy
            row.insert(3, Cell(DASH) if entropy is None else Cell(marked(group.exact, excess, group.stderr), excess))
    return Table("Over seeds", tuple(columns), tuple(map(tuple, rows)), (None,) * len(groups), SEED_NOTE)


def _results(run: Run) -> list[Cell]:
    nll, stderr, bpb = run.val_nll, run.val_nll_stderr, run.summary.val_bpb
    if not run.finished or not math.isfinite(nll):
        return [Cell(run.summary.status if not run.finished else "diverged"), Cell(DASH), Cell(DASH)]
    ppl = perplexity(nll)
    return [
        Cell(marked(run.exact, nll, stderr), nll),
        Cell(f"{sign_of(run.exact)} {ppl:.1f} \u00b1 {ppl * stderr:.1f}", ppl),
        Cell(DASH) if bpb is None else Cell(marked(run.exact, bpb, bpb * stderr / nll if nll else None), bpb),
    ]


def _costs(run: Run) -> list[Cell]:
    s = run.summary
    return [
        Cell(tokens_of(s), s.total_tokens),
        Cell(scientific(s.total_flops), s.total_flops),
        Cell(count(s.params), s.params),
        Cell(DASH if s.precision is None else s.precision),
        Cell(thousands(s.tokens_per_second), s.tokens_per_second),
        Cell(size(s.peak_memory_bytes), s.peak_memory_bytes),
        Cell(duration(s.wall_seconds), s.wall_seconds),
        Cell(str(s.seed), s.seed),
    ]


def _excess(run: Run) -> Cell:
    entropy = run.summary.entropy_per_token
    if entropy is None or not run.finished or not math.isfinite(run.val_nll):
        return Cell(DASH)
    excess = run.val_nll - entropy
    return Cell(marked(run.exact, excess, run.val_nll_stderr), excess)


def _value_cell(value: ValueAtBudget | None, exact: bool) -> Cell:
    if value is None:
        return Cell(DASH)
    return Cell(marked(exact, value.nll, value.stderr) + ("" if value.final else " *"), value.nll)


def _seed_row(group: SeedGroup) -> list[Cell]:
    single = ", ".join(f"{run.val_nll:.3f} ({run.summary.seed})" for run in group.runs)
    ppl = perplexity(group.mean)
    return [
        Cell(group.label),
        Cell(str(len(group.runs)), len(group.runs)),
        Cell(marked(group.exact, group.mean, group.stderr), group.mean),
        Cell(f"{sign_of(group.exact)} {ppl:.1f} \u00b1 {ppl * group.stderr:.1f}", ppl),
        Cell(single),
    ]
