"""Old names: refused in one line with the new one, wherever they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlmkit import renames
from toy_runs import TOY, dlmkit

OLD_KEYS = {"data.workers": "batch.num_workers", "data.pieces": "data.sources", "budget.words": "budget.tokens"}
OLD_CHOICES = {"process=masking": "process=absorbing", "callbacks=average": "callbacks=ema"}


@pytest.fixture(autouse=True)
def old_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(renames, "KEYS", OLD_KEYS)
    monkeypatch.setattr(renames, "CHOICES", OLD_CHOICES)


CASES = {
    "key": (["data.workers=2"], "data.workers is now batch.num_workers"),
    "added key": (["+data.workers=2"], "data.workers is now batch.num_workers"),
    "forced key": (["++data.workers=2"], "data.workers is now batch.num_workers"),
    "removed key": (["~data.workers"], "data.workers is now batch.num_workers"),
    "key below a renamed one": (["data.pieces.a.weight=2"], "data.pieces.a.weight is now data.sources.a.weight"),
    "added key below one": (["+data.pieces.a.weight=2"], "data.pieces.a.weight is now data.sources.a.weight"),
    "key of an own section": (["+budget.words=2"], "budget.words is now budget.tokens"),
    "swept key": (["data.workers=1,2", "-m"], "data.workers is now batch.num_workers"),
    "choice": (["process=masking"], "process=masking is now process=absorbing"),
    "added choice": (["+process=masking"], "process=masking is now process=absorbing"),
    "swept choice": (["process=absorbing,masking", "-m"], "process=masking is now process=absorbing"),
    "choice in a list": (["callbacks=[checkpoint,average]"], "callbacks=average is now callbacks=ema"),
    "choice in a swept list": (
        ["callbacks=[average,samples],[samples]", "-m"],
        "callbacks=average is now callbacks=ema",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_old_name_is_refused_with_the_new_one(case: str) -> None:
    overrides, line = CASES[case]
    outcome = dlmkit("train", *TOY, "budget.tokens=32", "hydra.run.dir=run", "hydra.sweep.dir=runs", *overrides)
    assert outcome.code == 2
    assert outcome.line.partition("; run ")[0] == f"dlmkit train: {line}"
    assert not [path for path in Path(".").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("data: {workers: 2}", "data.workers is now batch.num_workers"),
        ("defaults: [{override /process: masking}]", "process=masking is now process=absorbing"),
    ],
)
def test_an_old_name_in_an_experiments_file(content: str, line: str) -> None:
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(f"# @package _global_\n{content}\n")
    outcome = dlmkit("train", *TOY, "experiment=mine", "--config-dir=conf", "budget.tokens=32", "hydra.run.dir=run")
    assert outcome.code == 2
    assert outcome.line == f"dlmkit train: {line}"


@pytest.mark.parametrize("override", ["data.workers_each=2", "process=masking_more", "seed=1", "--multirun"])
def test_other_names_are_not_renamed(override: str) -> None:
    assert renames.renamed(override) is None
