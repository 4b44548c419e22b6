"""Golden numbers: the first losses of the quickstart's families, at toy size on the embedded corpus.

A refactoring leaves them alone. A change of behaviour brings new ones in the same commit, with the reason:

    python tests/golden/test_quickstart_losses.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from toy_runs import curve, dlmkit, weights

GOLDEN = Path(__file__).with_name("quickstart_losses.json")
FAMILIES = ("ar", "absorbing", "uniform")
STEPS = 5
OPTIONS = [
    "experiment=quickstart",
    "length=32",
    "batch.size=8",
    "tokenizer=bytes",
    "backbone.config={n_layer: 2, n_head: 2, n_embd: 32, n_positions: 64}",
    f"budget.tokens={STEPS * 8 * 32}",
    "lr_schedule.warmup_steps=2",
    "validation.every_steps=100",
    "validation.num_times=1",
    "data.val_fraction=0.001",
    "callbacks=[checkpoint]",
    "trainer.log_every_n_steps=1",
    "trainer.precision=32-true",  # also on a GPU
]


def measure(family: str, run_dir: Path) -> dict[str, list[float] | float]:
    """Train five steps and return the losses, and the norm of all weights after them."""
    outcome = dlmkit("train", *OPTIONS, f"family={family}", f"hydra.run.dir={run_dir}")
    assert outcome.code == 0, outcome.err
    squares = {value.data_ptr(): float(value.double().square().sum()) for value in weights(run_dir).values()}
    return {"losses": [loss for _, loss in curve(run_dir, "train/loss")], "norm": sum(squares.values()) ** 0.5}


@pytest.mark.parametrize("family", FAMILIES)
def test_losses(family: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())[family]
    found = measure(family, tmp_path / family)
    assert len(found["losses"]) == STEPS
    # Loose enough for another CPU's kernels, tight enough for any change in data order, times, noise or weights.
    assert found["losses"] == pytest.approx(golden["losses"], abs=1e-4)
    assert found["norm"] == pytest.approx(golden["norm"], abs=1e-3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        numbers = {family: measure(family, Path(folder) / family) for family in FAMILIES}
    GOLDEN.write_text(json.dumps(numbers, indent=2) + "\n")
