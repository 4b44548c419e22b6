"""An interrupted run that goes on ends exactly where an uninterrupted one ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dlmkit.t_samplers.learned import Learned
from toy_runs import TOY, checkpoint, curve, dlmkit, metrics, stop_at, summary, train, trained, weights

STEPS = 6  # validated and saved after 2, 4 and 6
CLOCKS = ("train/time", "train/device/", "epoch")

LEARNED = ["t_sampler=learned", "t_sampler.num_bins=4", "t_sampler.warmup_draws=2"]

# What is particular about a run, and where it is interrupted: (step, hook).
RUNS = {
    "absorbing": ["family=absorbing"],
    "ema": ["family=absorbing", "callbacks=[samples,throughput,checkpoint,ema]", "callbacks.ema.decay=0.5"],
    "accumulate": ["family=uniform", "batch.accumulate=2"],
    "complementary": ["family=absorbing", "corruption=complementary"],
    "ar": ["family=ar"],
    "block": ["family=block", "objective.block_size=2"],
    "clipped": ["family=block", "objective.block_size=2", "t_sampler=clipped"],
    "learned": ["family=absorbing", *LEARNED],
    "learned blocks": ["family=block", "objective.block_size=2", *LEARNED],
}
STOPS = {
    "after a step": (3, "on_train_batch_end"),
    "before a step": (4, "on_train_batch_start"),
    "in validation": (4, "on_validation_batch_start"),
}


CASES = [("absorbing", stop) for stop in STOPS] + [(run, "before a step") for run in RUNS if run != "absorbing"]


@pytest.mark.parametrize(("run", "stop"), CASES)
def test_resumed_equals_uninterrupted(run: str, stop: str) -> None:
    overrides = RUNS[run]
    whole = trained("whole", *overrides, steps=STEPS)

    outcome = train("parts", *overrides, stop_at(*STOPS[stop]), steps=STEPS)
    assert outcome.code == 130
    assert "if_exists=resume" in outcome.err.splitlines()[-1]
    parts = Path("parts")
    assert summary(parts)["status"] == "interrupted"
    trained("parts", *overrides, "if_exists=resume", steps=STEPS)

    assert_same_end(whole, parts)


def test_a_run_can_stop_twice() -> None:
    whole = trained("whole", steps=STEPS)
    parts = Path("parts")
    assert train("parts", stop_at(3), steps=STEPS).code == 130
    assert train("parts", stop_at(5), "if_exists=resume", steps=STEPS).code == 130
    trained("parts", "if_exists=resume", steps=STEPS)
    assert_same_end(whole, parts)


def test_stop_in_the_final_validation() -> None:
    whole = trained("whole", steps=3)
    assert train("parts", stop_at(3, "on_validation_batch_start"), steps=3).code == 130
    trained("parts", "if_exists=resume", steps=3)
    assert_same_end(whole, Path("parts"))


def assert_same_end(whole: Path, parts: Path) -> None:
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "parts", "settings"):
        torch.testing.assert_close(
            checkpoint(parts)[key], checkpoint(whole)[key], rtol=0, atol=0, msg=lambda text, key=key: f"{key}: {text}"
        )
    assert without_clocks(parts) == without_clocks(whole)
    same = ("val_nll", "val_nll_stderr", "steps", "tokens_seen", "total_flops", "status")
    assert {key: summary(parts)[key] for key in same} == {key: summary(whole)[key] for key in same}
    assert summary(parts)["tokens_per_second"] > 0


@pytest.mark.parametrize("run", ["learned", "learned blocks"])
def test_what_was_learned_of_t_matters_after_resuming(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that lost it would end elsewhere: the case above can fail."""
    whole = trained("whole", *RUNS[run], steps=STEPS)
    assert train("parts", *RUNS[run], stop_at(*STOPS["before a step"]), steps=STEPS).code == 130
    monkeypatch.setattr(Learned, "load_state_dict", lambda self, state: None)
    trained("parts", *RUNS[run], "if_exists=resume", steps=STEPS)
    with pytest.raises(AssertionError):
        assert_same_end(whole, Path("parts"))


def without_clocks(run_dir: Path) -> list[dict[str, str]]:
    rows = [{key: row[key] for key in sorted(row) if not key.startswith(CLOCKS)} for row in metrics(run_dir)]
    # Lightning's throughput counts its batches from where it began.
    return [row for row in rows if "train/batches" not in row]


def test_rows_after_the_checkpoint_are_made_again_not_twice() -> None:
    assert train("parts", stop_at(3), steps=STEPS).code == 130
    assert [step for step, _ in curve(Path("parts"), "train/loss")] == [0, 1]
    trained("parts", "if_exists=resume", steps=STEPS)
    assert [step for step, _ in curve(Path("parts"), "train/loss")] == list(range(STEPS))


def test_stopped_before_the_first_checkpoint_begins_again() -> None:
    whole = trained("whole", steps=STEPS)
    assert train("parts", stop_at(1), steps=STEPS).code == 130
    trained("parts", "if_exists=resume", steps=STEPS)
    assert_same_end(whole, Path("parts"))


def test_stopped_before_the_first_step_leaves_nothing() -> None:
    assert train("parts", stop_at(0, "on_train_batch_start"), steps=STEPS).code == 130
    assert not Path("parts").exists()


def test_failed_run_says_so_and_can_go_on() -> None:
    with pytest.raises(RuntimeError, match="stopped by the test"):
        train("parts", stop_at(3, error="RuntimeError"), steps=STEPS)
    assert summary(Path("parts"))["status"] == "failed"
    trained("parts", "if_exists=resume", steps=STEPS)
    assert summary(Path("parts"))["status"] == "finished"


def test_finished_run_is_left_as_it_is() -> None:
    run = trained("whole")
    before = (run / "summary.json").read_text()
    outcome = train("whole", "if_exists=resume")
    assert outcome.code == 0
    assert outcome.line == f"{run.resolve()}: finished already"
    assert (run / "summary.json").read_text() == before


def test_finished_run_does_not_grow() -> None:
    trained("whole", steps=2)
    outcome = train("whole", "if_exists=resume", steps=4)
    assert outcome.code == 2
    assert "has finished its 2 steps" in outcome.line


def test_overwriting_leaves_nothing_of_the_old_run() -> None:
    run = trained("whole", steps=STEPS)
    (run / "samples" / "step_0000005.json").write_text("old")
    trained("whole", "if_exists=overwrite", steps=2)
    assert not (run / "samples" / "step_0000005.json").exists()
    assert [step for step, _ in curve(run, "train/loss")] == [0, 1]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "step=2.ckpt"]


def test_sweep_goes_on_where_it_stopped() -> None:
    """The runs that have finished stay; the one that was interrupted and those that never began are trained."""
    sweep = ["train", *TOY, "hydra.sweep.dir=runs", "budget.tokens=128", "seed=0,1,2", "-m"]
    subdir = "hydra.sweep.subdir=${seed}"
    stop = "+callbacks.stop={_target_: toy_runs.StopSeed, seed: 1, step: 3}"
    assert dlmkit(*sweep, subdir, stop).code == 130
    assert [path.name for path in sorted(Path("runs").iterdir()) if path.is_dir()] == ["0", "1"]
    first = (Path("runs/0/summary.json")).read_text()
    outcome = dlmkit(*sweep, subdir, "if_exists=resume")
    assert outcome.code == 0, outcome.err
    assert [summary(Path("runs") / seed)["status"] for seed in "012"] == ["finished"] * 3
    assert Path("runs/0/summary.json").read_text() == first


def test_averaged_weights_are_validated_and_the_raw_ones_trained() -> None:
    """Averaging changes what is validated, sampled and saved, and nothing of the training."""
    common = ["callbacks.samples.num_samples=8", "optimizer.lr=0.1"]
    plain = trained("plain", "callbacks=[samples,checkpoint]", *common, steps=4)
    averaged = trained("averaged", "callbacks=[samples,checkpoint,ema]", "callbacks.ema.decay=0.9", *common, steps=4)
    assert curve(averaged, "train/loss") == curve(plain, "train/loss")
    assert curve(averaged, "val/nll") != curve(plain, "val/nll")

    saved = checkpoint(averaged, "step=4.ckpt")
    raw, average = saved["current_model_state"], saved["state_dict"]
    torch.testing.assert_close(raw, checkpoint(plain, "step=4.ckpt")["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(weights(averaged), average, rtol=0, atol=0)
    assert not all(torch.equal(raw[key], average[key]) for key in raw)

    # What the run reports is the averaged network: a run that starts from it and learns nothing reports the same.
    start = [f"init_from={averaged}", "callbacks.samples.num_samples=8", "optimizer.lr=0.0"]
    frozen = trained("frozen", "callbacks=[samples,checkpoint]", *start, steps=4)
    assert summary(frozen)["val_nll"] == summary(averaged)["val_nll"]
    last = "samples/step_0000004.json"
    assert (frozen / last).read_text() == (averaged / last).read_text() != (plain / last).read_text()
