"""Sweeps through other launchers: several runs at once, and each after the one that it starts from."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from toy_runs import TOKENS, TOY


@pytest.mark.parametrize(
    ("launcher", "package", "settings"),
    [
        pytest.param("joblib", "joblib", ["hydra.launcher.n_jobs=2"], id="joblib", marks=pytest.mark.long),
        pytest.param("submitit_local", "submitit", [], id="submitit"),
    ],
)
def test_a_sweep_in_order(launcher: str, package: str, settings: list[str], tmp_path: Path) -> None:
    if find_spec(package) is None:
        pytest.skip("needs the extra sweeps")
    options = [f"hydra/launcher={launcher}", *settings, "hydra.sweep.dir=sweep", f"budget.tokens={TOKENS}"]
    quick = ["logger=none", "callbacks=[checkpoint]", "trainer.accelerator=cpu"]
    toy = [override for override in TOY if not override.startswith("callbacks.")]
    command = [sys.executable, "-m", "dlmkit.cli", "train", *toy, *quick, *options, "family=adapted,ar", "-m"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    records = [json.loads(file.read_text()) for file in tmp_path.glob("sweep/*/summary.json")]
    by_family = {record["family"]: record for record in records}
    assert {record["status"] for record in records} == {"finished"}
    assert by_family["adapted"]["init_from"] == by_family["ar"]["name"]
