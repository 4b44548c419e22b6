"""The report's claims: budgets add up, nothing is extrapolated, bounds and exact values are told apart."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dlmkit.report import collect, main
from dlmkit.report.compare import at_budget, equal_budget, seed_groups, warnings_for
from dlmkit.report.words import row

STEP_TOKENS = 1000


def make_run(
    root: Path,
    name: str,
    *,
    curve: list[float],
    start: int = 0,
    every: int = 100,
    exact: bool = False,
    seed: int = 0,
    text: str = "And it came to pass",
    **changes: Any,
) -> Path:
    """Write a run folder whose validation NLL after (i + 1) * every steps is curve[i]; a step is 1,000 tokens."""
    folder = root / name
    (folder / "samples").mkdir(parents=True)
    steps = every * len(curve)
    own = steps * STEP_TOKENS
    summary = {
        "experiment": "quickstart", "name": name, "params": 957_184, "tokens_seen": own, "total_tokens": own + start,
        "flops": own * 6.0, "total_flops": (own + start) * 6.0, "init_from": "family=ar" if start else None,
        "steps": steps, "val_nll": curve[-1], "val_nll_stderr": 0.01, "val_ppl": math.exp(curve[-1]),
        "val_bpb": curve[-1] / 2.2, "nll_is_exact": exact, "val_tokens": 66_048, "val_t_grid": None if exact else 8,
        "entropy_per_token": None, "tokens_per_second": 15_000.0, "peak_memory_bytes": 8e8, "wall_seconds": 75.0,
        "seed": seed, "data_fingerprint": "bd20", "status": "finished",
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps({**summary, **changes}))
    (folder / "config.yaml").write_text(
        yaml.safe_dump({"seed": seed, "family": name.split(",")[0], "optimizer": {"lr": 2e-3}})
    )
    with (folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["step", "tokens", "total_tokens", "total_flops", "val/nll", "train/nll"])
        writer.writeheader()
        for index, value in enumerate(curve):
            step = (index + 1) * every
            tokens = step * STEP_TOKENS
            budget = {"tokens": tokens, "total_tokens": tokens + start, "total_flops": (tokens + start) * 6.0}
            # Lightning writes the two on different rows of the same step.
            writer.writerow({"step": step - 1, **budget})
            writer.writerow({"step": step - 1, "val/nll": value})
    for step in (1, steps):
        sample = {
            "step": step,
            "sampler": "ancestral",
            "num_steps": 64,
            "samples": [{"prompt": None, "text": f"{text} {step}"}],
        }
        (folder / "samples" / f"step_{step:07d}.json").write_text(json.dumps(sample))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    root = tmp_path / "quickstart"
    make_run(root, "family=ar", curve=[5.0, 4.0], every=1000, exact=True)
    make_run(root, "family=adapted", curve=[5.2, 4.9], every=500, start=2_000_000)
    make_run(root, "family=absorbing", curve=[5.9, 5.6, 5.3], every=1000)
    make_run(root, "family=uniform", curve=[6.0, 5.7, 5.4], every=1000)
    return root


def test_bounds_and_exact_values_are_told_apart(sweep: Path) -> None:
    cells = {run.name: row(run) for run in collect([sweep])}
    assert cells["ar"][1].startswith("= 4.000 ± 0.010")
    assert cells["adapted"][1].startswith("≤ 4.900 ± 0.010")
    assert cells["ar"][3] == "= 1.818 ± 0.005"


def test_a_budget_counts_the_run_that_a_run_started_from(sweep: Path) -> None:
    cells = {run.name: row(run) for run in collect([sweep])}
    assert cells["adapted"][4] == "1M + 2M (ar) = 3M"
    assert cells["absorbing"][4] == "3M"


def test_runs_are_sorted_by_their_likelihood(sweep: Path) -> None:
    assert [run.name for run in collect([sweep])] == ["ar", "adapted", "absorbing", "uniform"]


def test_interpolation_is_linear_in_log_budget_and_never_leaves_the_curve() -> None:
    curve = [(float(x), 7.0 - math.log(x)) for x in (10, 100, 1000)]
    assert at_budget(curve, 31.6) == pytest.approx(7.0 - math.log(31.6))
    assert at_budget(curve, 1000) == pytest.approx(7.0 - math.log(1000))
    assert at_budget(curve, 9.9) is None
    assert at_budget(curve, 1000.1) is None


def test_equal_tokens_compares_what_at_least_two_runs_reached(sweep: Path) -> None:
    at_2m, at_3m = equal_budget(collect([sweep]), "total_tokens")
    assert at_2m["budget"] == 2_000_000
    assert at_2m["val_nll"]["ar"] == 4.0
    assert at_2m["val_nll"]["absorbing"] == pytest.approx(5.6)
    assert at_2m["val_nll"]["adapted"] is None  # its curve begins above 2M
    assert at_3m["val_nll"] == {"ar": None, "adapted": 4.9, "absorbing": 5.3, "uniform": 5.4}


def test_budgets_that_differ_by_a_step_are_one(tmp_path: Path) -> None:
    make_run(tmp_path, "a", curve=[5.0, 4.0], every=1000)
    make_run(tmp_path, "b", curve=[5.0, 4.5], every=1001)
    (only,) = equal_budget(collect([tmp_path]), "total_tokens")
    assert only["val_nll"] == {"a": 4.0, "b": 4.5}


def test_seeds_are_grouped_with_their_standard_error(tmp_path: Path) -> None:
    for seed, value in enumerate((5.0, 5.1, 5.3)):
        make_run(tmp_path, f"family=absorbing,seed={seed}", curve=[6.0, value], seed=seed)
    make_run(tmp_path, "family=uniform,seed=0", curve=[6.0, 5.9])
    (group,) = seed_groups(collect([tmp_path]))
    mean = (5.0 + 5.1 + 5.3) / 3
    variance = sum((value - mean) ** 2 for value in (5.0, 5.1, 5.3)) / 2
    assert group["val_nll"] == pytest.approx(mean)
    assert group["stderr"] == pytest.approx(math.sqrt(variance / 3))
    assert sorted(group["seeds"]) == [0, 1, 2]


def test_different_data_and_unfinished_runs_are_warned_of(tmp_path: Path) -> None:
    make_run(tmp_path, "a", curve=[5.0, 4.0])
    make_run(tmp_path, "b", curve=[5.0, 4.5], data_fingerprint="other", val_t_grid=2)
    make_run(tmp_path, "c", curve=[5.0, 3.0], status="failed", val_nll=None)
    messages = " ".join(warnings_for(collect([tmp_path])))
    assert "different data" in messages
    assert "time grids of different size" in messages
    assert "c is failed" in messages
    assert equal_budget(collect([tmp_path]), "total_tokens")[0]["val_nll"].keys() == {"a", "b"}


def test_the_page_is_one_file_and_escapes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path, "a", curve=[5.0, 4.0], text="<script>alert(1)</script> & so")
    make_run(tmp_path, "b", curve=[5.5, 4.5])
    main([tmp_path], html=None, json=tmp_path / "tables.json")
    page = (tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so 200" in page  # the last samples, not the first
    assert not re.search(r"""(?:src|href)\s*=|url\(|@import""", page)
    assert page.count("<polyline") >= 4
    assert "≤ 4.000 ± 0.010" in page
    tables = json.loads((tmp_path / "tables.json").read_text())
    assert tables["equal_tokens"][0]["val_nll"] == {"a": 4.0, "b": 4.5}
    assert "report.html" in capsys.readouterr().out


def test_configuration_differences_name_only_what_differs(sweep: Path) -> None:
    main([sweep], html=None, json=None)
    page = (sweep / "report.html").read_text()
    assert "<td>family</td>" in page
    assert "optimizer.lr" not in page


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("none", "holds no finished run: make one"),
        ("typo", r"is no folder \(nearest: .*quickstart\)"),
        ("json", "is not valid JSON"),
        ("keys", "lacks status"),
    ],
)
def test_wrong_input_is_answered_in_one_line(sweep: Path, tmp_path: Path, damage: str, message: str) -> None:
    target = sweep
    if damage == "none":
        target = tmp_path / "empty"
        target.mkdir()
    elif damage == "typo":
        target = tmp_path / "quickstat"
    elif damage == "json":
        (sweep / "family=ar" / "summary.json").write_text("{")
    else:
        summary = json.loads((sweep / "family=ar" / "summary.json").read_text())
        del summary["status"]
        (sweep / "family=ar" / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=message) as error:
        main([target], html=None, json=None)
    assert "\n" not in str(error.value)


def test_the_report_needs_no_torch() -> None:
    code = "import sys, dlmkit.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
