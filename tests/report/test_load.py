"""Reading run folders: what is found, the labels of runs, and the messages about damaged files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dlmkit.commands.report import main
from dlmkit.report.load import collect

MakeRun = Callable[..., Path]


def test_a_run_is_found_once_at_any_depth(sweep: Path) -> None:
    assert len(collect([sweep.parent])) == 4
    assert len(collect([sweep, sweep / "family=ar", sweep / ".." / "quickstart"])) == 4
    assert [run.label for run in collect([sweep / "family=ar"])] == ["ar"]


def test_runs_of_one_name_are_labelled_by_their_folders(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path / "monday", "family=ar", curve=[5.0, 4.0])
    make_run(tmp_path / "tuesday", "family=ar", curve=[5.0, 4.5])
    assert [run.label for run in collect([tmp_path])] == ["monday/family=ar", "tuesday/family=ar"]


def test_labels_leave_out_what_all_runs_share(tmp_path: Path, make_run: MakeRun) -> None:
    shared = "budget.tokens=1000,callbacks=[checkpoint,samples],family=absorbing"
    for seed in (0, 1):
        for t_sampler in ("iid", "learned"):
            make_run(tmp_path, f"{shared},seed={seed},t_sampler={t_sampler}", curve=[5.0 + seed], seed=seed)
    labels = {run.label for run in collect([tmp_path])}
    assert labels == {f"seed={seed},t_sampler={t_sampler}" for seed in (0, 1) for t_sampler in ("iid", "learned")}
    make_run(tmp_path, "family=ar", curve=[4.0])
    assert f"{shared},seed=0,t_sampler=iid" in {run.label for run in collect([tmp_path])}


def test_the_last_samples_are_shown(sweep: Path) -> None:
    run = collect([sweep / "family=ar"])[0]
    assert run.samples["step"] == 2000


def test_metrics_may_lack_columns_and_rows(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path, "a", curve=[5.0, 4.0])
    (folder / "metrics.csv").write_text("step,val/nll\n,3\n999,5.0\n1999,nan\n")
    (run,) = collect([tmp_path])
    assert run.against("total_tokens", "val/nll") == []
    assert run.against("total_tokens", "train/nll") == []
    (folder / "metrics.csv").unlink()
    (folder / "config.yaml").unlink()
    main([tmp_path])


def test_a_step_without_a_budget_gets_it_from_its_neighbours(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path, "a", curve=[5.0, 4.0])
    (folder / "metrics.csv").write_text("step,total_tokens,val/nll\n0,100,\n10,1100,\n5,,4.5\n11,,4.4\n")
    (run,) = collect([tmp_path])
    assert [(point.x, point.y) for point in run.against("total_tokens", "val/nll")] == [(600.0, 4.5)]


def test_a_resumed_run_repeats_steps_and_the_last_one_counts(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path, "a", curve=[5.0, 4.0])
    (folder / "metrics.csv").write_text("step,total_tokens,val/nll\n5,600,4.5\n5,600,4.4\n")
    assert [point.y for point in collect([tmp_path])[0].against("total_tokens", "val/nll")] == [4.4]


def test_a_folder_without_runs_is_refused_with_a_command_that_makes_some(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(ValueError, match=r"holds no finished run: make one, for example with `dlmkit train"):
        collect([tmp_path])
    make_run(tmp_path, "a", curve=[5.0, 4.0], status="running")
    with pytest.raises(ValueError, match=r"holds no finished run \(a is running\)"):
        collect([tmp_path])


def test_a_mistyped_folder_gets_the_nearest_name(sweep: Path) -> None:
    with pytest.raises(ValueError, match=r"is no folder \(nearest: .*quickstart\)"):
        collect([sweep.parent / "quickstat"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "summary.json is not valid JSON"),
        ("[]", "summary.json holds no JSON object"),
        ("{}", "summary.json lacks experiment, name, family and 29 more keys"),
    ],
)
def test_a_damaged_record_costs_no_other_run(
    sweep: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (sweep / "family=ar" / "summary.json").write_text(content)
    assert "ar" not in {run.label for run in collect([sweep])}
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert line.endswith("; that run is left out")
    with pytest.raises(ValueError, match=message) as error:
        main([sweep / "family=ar"])
    assert "\n" not in str(error.value)
    assert not (sweep / "family=ar" / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "a: [", "config.yaml is not valid YAML"),
        ("metrics.csv", "step,val/nll\n1,4.0\n2,4.x\n", "metrics.csv line 3: could not convert"),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv has no column step"),
        ("samples/step_0000001.json", "{", "step_0000001.json is not valid JSON"),
        ("samples/step_0000001.json", "{}", "step_0000001.json lacks step or samples"),
        (
            "samples/step_0000001.json",
            '{"step": 1, "samples": [1]}',
            "step_0000001.json has step or samples of another",
        ),
    ],
)
def test_a_damaged_file_costs_no_result(
    sweep: Path, file: str, content: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {run.label: run.summary for run in collect([sweep])}
    (sweep / "family=ar" / file).write_text(content)
    assert {run.label: run.summary for run in collect([sweep])} == whole
    main([sweep])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ") and file in line]
    assert message in line
    assert message in (sweep / "report.html").read_text()


def test_the_report_needs_no_torch() -> None:
    code = "import sys, dlmkit.commands.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
