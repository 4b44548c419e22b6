"""Comparisons: budgets add up, nothing is extrapolated, seeds are averaged, unfair comparisons get a warning."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from dlmkit.report.compare import at_budget, equal_budget, seed_groups, validation_curve, warnings_for
from dlmkit.report.load import Point, collect
from dlmkit.report.tables import budget_tables, run_table, seed_table

MakeRun = Callable[..., Path]


def cells_of(folder: Path) -> dict[str, dict[str, str]]:
    table = run_table(collect([folder]))
    return {row[0].text: dict(zip(table.columns, (cell.text for cell in row), strict=True)) for row in table.rows}


def test_bounds_and_exact_values_have_different_signs(sweep: Path) -> None:
    cells = cells_of(sweep)
    assert cells["ar"]["NLL, nats/token"] == "= 4.000 ± 0.010"
    assert cells["adapted"]["NLL, nats/token"] == "≤ 4.900 ± 0.010"


def test_standard_errors_are_carried_over(sweep: Path) -> None:
    cells = cells_of(sweep)["ar"]
    assert cells["perplexity"] == f"= {math.exp(4.0):.1f} ± {math.exp(4.0) * 0.01:.1f}"
    assert cells["bits/byte"] == f"= {4 / 2.2:.3f} ± {0.01 / 2.2:.3f}"


def test_a_budget_counts_the_run_that_a_run_started_from(sweep: Path) -> None:
    cells = cells_of(sweep)
    assert cells["adapted"]["own + before = total tokens"] == "1.00M + 2.00M (ar) = 3.00M"
    assert cells["adapted"]["total FLOPs"] == "1.80e7"
    assert cells["absorbing"]["own + before = total tokens"] == "3.00M"
    curve = next(validation_curve(run, "total_tokens") for run in collect([sweep]) if run.label == "adapted")
    assert [point.x for point in curve] == [2_500_000, 3_000_000]


def test_runs_are_sorted_by_their_likelihood(sweep: Path) -> None:
    assert [run.label for run in collect([sweep])] == ["ar", "adapted", "absorbing", "uniform"]


def test_what_exceeds_a_known_entropy_is_the_true_error(sweep: Path, make_run: MakeRun) -> None:
    make_run(sweep, "markov", curve=[5.0, 4.5], entropy_per_token=4.25)
    cells = cells_of(sweep)
    assert cells["markov"]["above entropy"] == "≤ 0.250 ± 0.010"
    assert cells["ar"]["above entropy"] == "–"


@pytest.mark.parametrize("budget", [10.0, 31.6, 100.0, 999.0, 1000.0])
def test_interpolation_is_exact_on_a_line_in_log_budget(budget: float) -> None:
    curve = [Point(float(x), 7.0 - math.log(x), 0.1) for x in (1000, 10, 100)]
    found = at_budget(curve, budget)
    assert found is not None
    assert found.y == pytest.approx(7.0 - math.log(budget))
    assert found.stderr == pytest.approx(0.1)


@pytest.mark.parametrize("budget", [0.0, 9.9, 1000.1])
def test_nothing_is_extrapolated(budget: float) -> None:
    assert at_budget([Point(10.0, 7.0), Point(1000.0, 5.0)], budget) is None
    assert at_budget([], budget) is None


@pytest.mark.parametrize(("budget", "unit"), [("total_tokens", 1000), ("total_flops", 6000.0)])
def test_equal_budgets_compare_what_at_least_two_runs_reached(sweep: Path, budget: str, unit: float) -> None:
    at_2m, at_3m = equal_budget(collect([sweep]), budget)
    assert (at_2m.amount, at_3m.amount) == (2000 * unit, 3000 * unit)
    assert at_2m.values["adapted"] is None  # its curve begins above
    assert at_3m.values["ar"] is None  # its curve ends below
    ar, absorbing = at_2m.values["ar"], at_2m.values["absorbing"]
    assert ar is not None
    assert (ar.nll, ar.stderr, ar.final) == (4.0, 0.01, True)
    assert absorbing is not None
    assert (absorbing.nll, absorbing.stderr, absorbing.final) == (5.6, 0.02, False)


def test_interpolated_values_are_marked(sweep: Path) -> None:
    tokens, flops = budget_tables(collect([sweep]))
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in tokens.rows}
    assert tokens.columns == ("run", "at 2.00M", "at 3.00M")
    assert rows["absorbing"] == ["≤ 5.600 ± 0.020 *", "≤ 5.300 ± 0.010"]
    assert rows["ar"] == ["= 4.000 ± 0.010", "–"]
    assert "extrapolated" in flops.note


def test_a_budget_that_one_run_reached_compares_nothing(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "a", curve=[5.0, 4.0], every=1000)
    make_run(tmp_path, "b", curve=[5.0, 4.0], every=100)
    assert equal_budget(collect([tmp_path]), "total_tokens") == []


def test_budgets_that_differ_by_a_step_are_one(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "a", curve=[5.0, 4.0], every=1000)
    make_run(tmp_path, "b", curve=[5.0, 4.5], every=1001)
    (only,) = equal_budget(collect([tmp_path]), "total_tokens")
    assert {label: value.nll for label, value in only.values.items() if value} == {"a": 4.0, "b": 4.5}


def test_seeds_are_grouped_with_their_standard_error(tmp_path: Path, make_run: MakeRun) -> None:
    for seed, value in enumerate((5.0, 5.1, 5.3)):
        make_run(tmp_path, f"family=absorbing,seed={seed}", curve=[6.0, value], seed=seed)
    make_run(tmp_path, "family=uniform,seed=0", curve=[6.0, 5.9])
    runs = collect([tmp_path])
    (group,) = seed_groups(runs)
    mean = (5.0 + 5.1 + 5.3) / 3
    variance = sum((value - mean) ** 2 for value in (5.0, 5.1, 5.3)) / 2
    assert group.label == "absorbing"
    assert group.mean == pytest.approx(mean)
    assert group.stderr == pytest.approx(math.sqrt(variance / 3))
    table = seed_table(runs)
    assert table is not None
    assert [cell.text for cell in table.rows[0]][:3] == ["absorbing", "3", "≤ 5.133 ± 0.088"]


def test_means_over_seeds_are_ordered_and_held_against_a_known_entropy(tmp_path: Path, make_run: MakeRun) -> None:
    """The best single run is of the configuration whose mean is worse."""
    for family, values in (("uniform", (5.0, 6.0)), ("absorbing", (5.1, 5.3))):
        for seed, value in enumerate(values):
            name = f"family={family},seed={seed}"
            make_run(tmp_path, name, curve=[6.5, value], seed=seed, entropy_per_token=4.0)
    table = seed_table(collect([tmp_path]))
    assert table is not None
    assert [row[0].text for row in table.rows] == ["absorbing", "uniform"]
    place = table.columns.index("above entropy")
    assert [row[place].text for row in table.rows] == ["≤ 1.200 ± 0.100", "≤ 1.500 ± 0.500"]


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(sweep: Path) -> None:
    assert seed_groups(collect([sweep])) == []
    assert seed_table(collect([sweep])) is None


def test_a_fair_sweep_has_no_warnings(sweep: Path) -> None:
    assert warnings_for(collect([sweep])) == []


def test_different_data_is_the_first_warning(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "a", curve=[5.0, 4.0])
    make_run(tmp_path, "b", curve=[5.0, 4.5], data_fingerprint="other", val_t_grid=2, val_tokens=512)
    first, second, third = warnings_for(collect([tmp_path]))
    assert "NOT comparable" in first
    assert "bd20: a" in first
    assert "val_t_grid 8: a; 2: b" in second
    assert "66048: a; 512: b" in third


def test_different_precisions_are_named(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "a", curve=[5.0, 4.0])
    make_run(tmp_path, "b", curve=[5.0, 4.5], precision="bf16-mixed")
    make_run(tmp_path, "old", curve=[5.0, 4.6], precision=None)
    (message,) = warnings_for(collect([tmp_path]))
    assert "different precisions" in message
    assert "32-true: a; bf16-mixed: b" in message
    assert [cells_of(tmp_path)[run]["precision"] for run in ("a", "b", "old")] == ["32-true", "bf16-mixed", "–"]


def test_an_exact_run_has_no_grid_to_differ_in(sweep: Path, make_run: MakeRun) -> None:
    make_run(sweep, "other", curve=[5.0, 4.5], exact=True)
    assert not any("val_t_grid" in message for message in warnings_for(collect([sweep])))


def test_unfinished_and_diverged_runs_are_listed_and_not_compared(sweep: Path, make_run: MakeRun) -> None:
    make_run(sweep, "killed", curve=[5.0, 3.0], status="failed", val_nll=None)
    make_run(sweep, "blown", curve=[5.0, 3.0], val_nll=math.nan)
    runs = collect([sweep])
    assert [run.label for run in runs][-2:] == ["blown", "killed"]
    assert cells_of(sweep)["killed"]["NLL, nats/token"] == "failed"
    assert cells_of(sweep)["blown"]["NLL, nats/token"] == "diverged"
    assert equal_budget(runs, "total_tokens")[0].values.keys() == {"ar", "adapted", "absorbing", "uniform"}
    messages = " ".join(warnings_for(runs))
    assert "killed is failed" in messages
    assert "blown finished with an NLL that is no finite number" in messages


def test_a_starting_run_that_is_missing_gets_a_warning(sweep: Path) -> None:
    (message,) = warnings_for(collect([sweep / "family=adapted"]))
    assert "adapted started from family=ar, which is not in this report" in message
