"""A run that is killed at any moment continues as if nothing had happened."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from kills import differences

from toy_runs import stop_at, summary, train, trained

KILLS = Path(__file__).with_name("kills.py")


def test_kills_of_a_run_with_much_state() -> None:
    """Averaged weights, learned times, a stateful objective, accumulation; the script forks, so it has a process."""
    command = [sys.executable, str(KILLS), "--times", "3", "--variants", "everything", "--report", "report.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(Path("report.json").read_text())
    assert (report["kills"], report["lost"]) == (3, 0)
    assert report["inside_a_write"]


def test_the_comparison_sees_what_is_lost() -> None:
    """Without the state of its objective a resumed run ends elsewhere."""
    for objective, lost in (("Rescaled", False), ("Forgetful", True)):
        parts = ["family=absorbing", f"objective._target_=stateful.{objective}"]
        whole = trained(f"{objective}-whole", *parts, steps=6)
        run = f"{objective}-parts"
        assert train(run, *parts, stop_at(5), steps=6).code == 130
        trained(run, *parts, "if_exists=resume", steps=6)
        found = differences(Path(run), whole)
        assert bool(found) == lost, found


def test_a_block_size_that_grew_is_recorded_after_the_last_step() -> None:
    """A run that is resumed with nothing left to train has it from the checkpoint alone."""
    parts = ["family=block", "objective.block_size=2", "+callbacks.growth={_target_: stateful.Growth}"]
    whole = trained("whole", *parts, steps=5)
    assert summary(whole)["block_size"] == 4
    assert train("parts", *parts, stop_at(5, "on_train_end"), steps=5).code == 130
    shutil.copy(whole / "checkpoints/last.ckpt", "parts/checkpoints/last.ckpt")
    trained("parts", *parts, "if_exists=resume", steps=5)
    assert differences(Path("parts"), whole) == []
    assert "block_size: 4" in Path("parts/config.yaml").read_text()
