"""A run goes on under the settings that it was begun with; what decides nothing of its result may change."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import contents

from dlmkit.runs import compare
from toy_runs import MODEL, SMALL, TOKENS, curve, dlmkit, stop_at, summary, text_corpus, text_data, train, trained

STEPS = 4
AUTO = "if_exists=auto"

# override -> what is named
REFUSED = {
    "batch.size=8": "batch.size 4 -> 8",
    "seed=1": "seed 0 -> 1",
    "data.num_train_sequences=63": "data.num_train_sequences 64 -> 63",
    "length=4": "length 8 -> 4",
    "schedule=cosine": "schedule._target_ dlmkit.schedules.linear.Linear -> dlmkit.schedules.cosine.Cosine",
    "family=uniform": "process._target_",
    "corruption=fixed_count": "corruption._target_",
    "objective.weighting=clipped": "objective.weighting",
    "t_sampler=iid": "t_sampler._target_",
    "optimizer.lr=0.1": "optimizer.lr 0.002 -> 0.1",
    "+optimizer.amsgrad=true": "optimizer.amsgrad absent -> True",
    "lr_schedule=constant": "lr_schedule._target_",
    "lr_schedule.warmup_steps=2": "lr_schedule.warmup_steps 1 -> 2",
    "backbone.config.n_layer=2": "backbone.config.n_layer 1 -> 2",
    "trainer.precision=bf16-mixed": "trainer.precision 32-true -> bf16-mixed",
    "trainer.gradient_clip_val=2.0": "trainer.gradient_clip_val 1.0 -> 2.0",
    "ar_weight=0.5": "ar_weight 0.0 -> 0.5",
    "validation.num_times=3": "validation.num_times 2 -> 3",
    "budget.tokens=96": "budget.tokens 128 -> 96",
    "callbacks=[samples,throughput,lr,checkpoint,ema]": "callbacks.ema._target_ absent",
}
REFUSED_PRECISION = "trainer.precision=bf16-mixed"
MAY_CHANGE = [
    "optimizer.fused=false",
    "batch.accumulate=2",
    "batch.num_workers=1",
    "trainer.log_every_n_steps=2",
    "logger=none",
    "callbacks=[samples,throughput,checkpoint]",
    "callbacks.samples.num_steps=3",
    "validation.every_steps=1",
]


@pytest.fixture
def interrupted() -> dict[str, bytes]:
    """Leave an interrupted run in the folder `run`, and return its contents."""
    assert train("run", stop_at(3), steps=STEPS).code == 130
    return contents(Path("run"))


@pytest.mark.parametrize("override", REFUSED)
def test_what_decides_the_result_is_refused(override: str, interrupted: dict[str, bytes]) -> None:
    outcome = train("run", AUTO, override, steps=STEPS)
    assert outcome.code == 2
    assert "run was begun with other settings: " in outcome.line
    assert REFUSED[override] in outcome.line
    assert "num_steps" not in outcome.line, "what follows from a key is not named beside it"
    assert contents(Path("run")) == interrupted


def test_a_finished_run_is_held_to_its_settings_too() -> None:
    before = contents(trained("run", steps=STEPS))
    for override in ("seed=1", "batch.size=8", "optimizer.lr=0.1"):
        outcome = train("run", AUTO, override, steps=STEPS)
        assert outcome.code == 2
        assert f"{REFUSED[override]}; give the same ones" in outcome.line
    assert "cannot continue to 5" in train("run", AUTO, steps=5).line
    assert "finished already" in train("run", AUTO, "logger=none", steps=STEPS).line
    assert contents(Path("run")) == before


def test_a_longer_run_is_another_one(interrupted: dict[str, bytes]) -> None:
    """Its learning rate would have been another from the first step on."""
    assert "budget.tokens 128 -> 256" in train("run", AUTO, steps=8).line


def test_what_decides_nothing_may_change() -> None:
    whole = trained("whole", steps=STEPS)
    assert train("run", stop_at(3), steps=STEPS).code == 130
    run = trained("run", AUTO, *MAY_CHANGE, steps=STEPS)
    assert summary(run)["val_nll"] == pytest.approx(summary(whole)["val_nll"], rel=1e-5)
    assert [step for step, _ in curve(run, "val/nll")] == [1, 2, 3, 4]


def test_the_precision_that_was_chosen_is_kept_wherever_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun on a CPU, continued by the same command where auto would be bf16-mixed."""
    assert train("run", stop_at(3), steps=STEPS).code == 130
    assert "  precision: 32-true\n" in Path("run/config.yaml").read_text()
    assert summary(Path("run"))["precision"] == "32-true"
    monkeypatch.setattr("dlmkit.config.precision.precision_here", lambda accelerator: "bf16-mixed")
    outcome = train("run", AUTO, steps=STEPS)
    assert outcome.code == 0
    assert "run: goes on in 32-true, as it was begun; trainer.precision=auto would be bf16-mixed here" in outcome.err
    assert summary(Path("run"))["precision"] == "32-true"
    assert "finished already" in train("run", AUTO, steps=STEPS).line
    assert "trainer.precision 32-true -> bf16-mixed" in train("run", AUTO, REFUSED_PRECISION, steps=STEPS).line


def test_auto_takes_no_precision_that_it_would_not_choose() -> None:
    assert train("run", "trainer.precision=bf16-true", stop_at(3), steps=STEPS).code == 130
    assert "trainer.precision bf16-true -> auto" in train("run", AUTO, steps=STEPS).line


def test_the_record_has_the_precision_that_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlmkit.config.precision.precision_here", lambda accelerator: "bf16-mixed")
    run = trained("run")
    assert summary(run)["precision"] == "bf16-mixed"
    assert "  precision: bf16-mixed\n" in (run / "config.yaml").read_text()
    assert summary(trained("other", "trainer.precision=bf16"))["precision"] == "bf16-mixed"


def test_a_callback_of_the_users_own_is_said() -> None:
    assert train("run", stop_at(3), steps=STEPS).code == 130
    outcome = train("run", AUTO, steps=STEPS)
    assert outcome.code == 0
    assert outcome.err.splitlines()[0].endswith("with other settings of callbacks.stop than it was begun with")


def test_a_block_size_that_grew_is_compared_with_the_first() -> None:
    grow = ["family=block", "objective.block_size=2", "+callbacks.grow={_target_: processes.GrowBlocks, step: 1}"]
    assert train("run", *grow, stop_at(3), steps=STEPS).code == 130
    assert "block_size: 4" in Path("run/config.yaml").read_text()
    outcome = train("run", *grow, "objective.block_size=4", AUTO, steps=STEPS)
    assert "objective.block_size 2 -> 4" in outcome.line
    assert summary(trained("run", *grow, AUTO, steps=STEPS))["block_size"] == 4
    assert "finished already" in train("run", *grow, AUTO, steps=STEPS).err
    assert "block_size: 4" in Path("run/config.yaml").read_text()


def test_data_that_changed_under_the_same_name() -> None:
    run = [*MODEL, *SMALL, *text_data(text_corpus(Path("text.txt"))), f"budget.tokens={STEPS * TOKENS}"]
    command = ["train", *run, "hydra.run.dir=run"]
    assert dlmkit(*command, stop_at(3)).code == 130
    before = contents(Path("run"))
    text = Path("text.txt").read_text()
    Path("text.txt").write_text(text.replace("light", "night"))
    outcome = dlmkit(*command, AUTO)
    assert outcome.code == 2
    assert "was begun on data with data_fingerprint" in outcome.err
    assert contents(Path("run")) == before
    Path("text.txt").write_text(text)
    assert dlmkit(*command, AUTO).code == 0


@pytest.mark.parametrize("text", ["{", "a: [1", "\x00", "- 1", ""])
def test_a_damaged_configuration_is_one_line(text: str, interrupted: dict[str, bytes]) -> None:
    Path("run/config.yaml").write_text(text)
    outcome = train("run", AUTO, steps=STEPS)
    assert outcome.code == 2
    assert "config.yaml" in outcome.line
    Path("run/config.yaml").unlink()
    assert "config.yaml is missing" in train("run", AUTO, steps=STEPS).line


def test_a_new_start_may_have_other_settings() -> None:
    """Nothing was saved, so nothing is lost."""
    assert train("run", stop_at(1), steps=STEPS).code == 130
    assert summary(trained("run", AUTO, "seed=1", steps=STEPS))["seed"] == 1


def test_values_that_differ_in_form_alone_are_equal() -> None:
    changes = compare({"a": 1, "b": float("nan"), "c": [0.9]}, {"a": 1.0, "b": float("nan"), "c": [0.9]}, [])
    assert not changes.refused
