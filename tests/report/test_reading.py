"""Reading run folders: what is found, how runs are called, and what is said of broken files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dlmkit.report import collect, main

MakeRun = Callable[..., Path]


def change_summary(folder: Path, **changes: Any) -> None:
    file = folder / "summary.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_run_is_found_once_at_any_depth(sweep: Path) -> None:
    assert len(collect([sweep.parent])) == 4
    assert len(collect([sweep, sweep / "family=ar", sweep / ".." / "quickstart"])) == 4
    assert [run.label for run in collect([sweep / "family=ar"])] == ["ar"]


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path, make_run: MakeRun) -> None:
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


def test_the_last_samples_hold(sweep: Path) -> None:
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


def test_a_resumed_run_repeats_steps_and_the_last_one_holds(tmp_path: Path, make_run: MakeRun) -> None:
    folder = make_run(tmp_path, "a", curve=[5.0, 4.0])
    (folder / "metrics.csv").write_text("step,total_tokens,val/nll\n5,600,4.5\n5,600,4.4\n")
    assert [point.y for point in collect([tmp_path])[0].against("total_tokens", "val/nll")] == [4.4]


def test_a_folder_without_runs_says_how_to_make_some(tmp_path: Path, make_run: MakeRun) -> None:
    with pytest.raises(ValueError, match=r"holds no finished run: make one, for example with `dlmkit train"):
        collect([tmp_path])
    make_run(tmp_path, "a", curve=[5.0, 4.0], status="running")
    with pytest.raises(ValueError, match=r"holds no finished run \(a is running\)"):
        collect([tmp_path])


def test_a_mistyped_folder_is_told_its_nearest_name(sweep: Path) -> None:
    with pytest.raises(ValueError, match=r"is no folder \(nearest: .*quickstart\)"):
        collect([sweep.parent / "quickstat"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", "{", "summary.json is not valid JSON"),
        ("summary.json", "[]", "summary.json holds no JSON object"),
        ("summary.json", '{"name": "ar"}', "summary.json lacks status"),
        ("summary.json", '{"name": "ar", "status": "finished"}', "summary.json lacks nll_is_exact, seed, val_nll"),
        ("config.yaml", "a: [", "config.yaml is not valid YAML"),
        ("metrics.csv", "step,val/nll\n1,4.0\n2,4.x\n", "metrics.csv line 3: could not convert"),
        ("samples/step_0000001.json", "{", "step_0000001.json is not valid JSON"),
        ("samples/step_0000001.json", "{}", "step_0000001.json lacks step or samples"),
    ],
)
def test_a_broken_file_is_named_in_one_line(sweep: Path, file: str, content: str, message: str) -> None:
    (sweep / "family=ar" / file).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        main([sweep])
    assert "\n" not in str(error.value)
    assert not (sweep / "report.html").exists()


def test_a_summary_with_a_word_for_a_number_is_refused(sweep: Path) -> None:
    change_summary(sweep / "family=ar", val_nll="low")
    with pytest.raises(ValueError, match=r"summary.json has val_nll 'low', which must be a number"):
        collect([sweep])


def test_the_report_needs_no_torch() -> None:
    code = "import sys, dlmkit.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
