"""Every training run: the same result however it is split into micro-batches, and two lines of output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toy_runs import (
    LENGTH,
    MODEL,
    SMALL,
    TOKENS,
    TOY,
    checkpoint,
    curve,
    dlmkit,
    summary,
    text_corpus,
    text_data,
    trained,
    weights,
)


@pytest.mark.parametrize(
    "family",
    [
        "ar",
        "absorbing",
        "uniform",
        "block,objective.block_size=4",
        "block,objective.block_size=4,corruption=complementary",
    ],
)
def test_accumulation_changes_nothing(family: str) -> None:
    """The same global batches, times and noise give the same two steps; Adam's eps is raised, for it divides by ~0."""
    options = [*f"family={family}".split(","), "batch.size=8", "optimizer.eps=1e-3"]
    runs = [
        trained(f"by{parts}", *options, f"batch.accumulate={parts}", steps=2, tokens=8 * LENGTH) for parts in (1, 2, 4)
    ]
    for other in runs[1:]:
        torch.testing.assert_close(weights(other), weights(runs[0]), rtol=1e-4, atol=1e-6)
        assert summary(other)["val_nll"] == pytest.approx(summary(runs[0])["val_nll"], rel=1e-5)
        assert summary(other)["tokens_seen"] == 2 * 8 * LENGTH
        norms = [value for _, value in curve(other, "train/grad_norm")]
        assert norms == pytest.approx([value for _, value in curve(runs[0], "train/grad_norm")], rel=1e-4)


def test_clipping_sees_the_gradient_of_the_mean_over_scored_tokens() -> None:
    """One step of plain descent with rate 1 moves the weights by the clipped norm, and the logged norm is before it.

    With bos=none an eighth of the positions is not scored, so normalising after clipping would show.
    """
    plain = ["optimizer._target_=torch.optim.SGD", "~optimizer.betas", "~optimizer.eps", "optimizer.weight_decay=0.0"]
    plain += ["optimizer.lr=1.0", "lr_schedule=constant", "backbone.bos=none", "callbacks=[checkpoint]"]
    plain = [option for option in plain if "samples" not in option]
    options = [option for option in TOY if "callbacks.samples" not in option]
    norms = {}
    for clip in ("0.05", "null"):
        arguments = [*options, *plain, f"trainer.gradient_clip_val={clip}", "budget.tokens=32"]
        for name, rate in (("before", "0.0"), ("after", "1.0")):
            outcome = dlmkit("train", *arguments, f"optimizer.lr={rate}", f"hydra.run.dir={name}-{clip}")
            assert outcome.code == 0, outcome.err
        before, after = weights(Path(f"before-{clip}")), weights(Path(f"after-{clip}"))
        # The head is tied to the embedding: the same weight under two names.
        moved = {value.data_ptr(): (after[key] - value) for key, value in before.items()}
        norms[clip] = float(torch.stack([change.norm() for change in moved.values()]).norm())
        norms[f"logged-{clip}"] = curve(Path(f"after-{clip}"), "train/grad_norm")[0][1]
    assert norms["0.05"] == pytest.approx(0.05, rel=1e-3)
    assert norms["logged-0.05"] == norms["logged-null"] == pytest.approx(norms["null"], rel=1e-3)
    assert norms["null"] > 0.1


def test_same_command_same_weights() -> None:
    first, second = trained("first"), trained("second")
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)
    third = trained("third", "seed=1")
    assert any(not torch.equal(weights(first)[key], value) for key, value in weights(third).items())


def test_validation_is_the_same_at_any_micro_batch() -> None:
    """10 validation sequences in batches of 4, 3 and 10: times and noise depend on the sequence's index alone."""
    start = trained("start")
    frozen = ["optimizer.lr=0.0", f"init_from={start}"]
    results = []
    for size in (4, 3, 10):
        run = trained(f"by{size}", *frozen, f"batch.size={size}", steps=1, tokens=size * LENGTH)
        results.append((summary(run)["val_nll"], summary(run)["val_nll_stderr"]))
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[2] == pytest.approx(results[0], rel=1e-5)


def test_copies_cost_compute_and_no_tokens() -> None:
    """Two noisy copies of each sequence: twice the FLOPs and the tokens read, for the same tokens of the budget."""
    options = ["callbacks.throughput.window_size=2"]
    plain, pair = (trained(name, f"corruption={name}", *options, steps=4) for name in ("independent", "complementary"))
    once, twice = summary(plain), summary(pair)
    assert twice["flops"] == pytest.approx(2 * once["flops"], rel=1e-9)  # the linear schedule masks half in either
    assert twice["total_flops"] == twice["flops"]
    assert curve(pair, "total_flops")[-1][1] == pytest.approx(twice["flops"])
    assert twice["tokens_seen"] == once["tokens_seen"] == 4 * TOKENS
    assert twice["val_tokens"] == once["val_tokens"]
    for run, copies in ((plain, 1), (pair, 2)):
        seconds = checkpoint(run)["callbacks"]["RunRecord"]["train_seconds"]
        assert summary(run)["tokens_per_second"] == pytest.approx(copies * 4 * TOKENS / seconds)
    for name in ("items", "samples", "flops"):
        per_batch = [
            curve(run, f"train/device/{name}_per_sec")[-1][1] / curve(run, "train/device/batches_per_sec")[-1][1]
            for run in (plain, pair)
        ]
        assert per_batch[1] == pytest.approx(2 * per_batch[0])


def test_copies_beside_annealing_documents_and_a_next_token_loss(tmp_path: Path) -> None:
    """Annealing and document masks apply to each copy of a sequence, the next-token loss to the clean tokens once."""
    options = [
        *text_data(text_corpus(tmp_path / "corpus.txt")),
        "data.document_masking=true",
        "corruption=complementary",
        "callbacks=[samples,annealing,throughput,checkpoint]",
        "callbacks.annealing.anneal_steps=4",
        "ar_weight=0.5",
        "optimizer.eps=1e-3",
    ]
    for parts in (1, 2):
        own = [f"hydra.run.dir=by{parts}", f"batch.accumulate={parts}", f"budget.tokens={3 * TOKENS}"]
        outcome = dlmkit("train", *MODEL, *SMALL, *options, *own)
        assert outcome.code == 0, outcome.err
    one, two = Path("by1"), Path("by2")
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=1e-6)
    assert 0 < curve(one, "train/ar_nll")[-1][1] < 10
    assert 1 < curve(one, "train/nll")[0][1] < 30


def test_learning_rate_is_that_of_the_schedule() -> None:
    run = trained("run", "optimizer.lr=0.01", "lr_schedule.final=0.5", steps=4)
    rates = [rate for _, rate in curve(run, "lr-AdamW/pg1")]
    assert rates[0] == pytest.approx(0.01)  # one step of warm-up is the peak at once
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0.005
    assert checkpoint(run)["lr_schedulers"][0]["last_epoch"] == 4


def test_throughput_is_logged() -> None:
    run = trained("run", "callbacks.throughput.window_size=2", steps=4)
    speeds = [value for _, value in curve(run, "train/device/items_per_sec")]
    assert 0 < min(speeds) <= max(speeds) < 1e6
    assert all(0 < value < 1 for _, value in curve(run, "train/device/mfu"))
    assert not [name for name in Path("run/metrics.csv").read_text().split("\n")[0].split(",") if "validate" in name]


def test_samples_come_at_intervals_and_at_the_end() -> None:
    run = trained("run", "batch.accumulate=2", "callbacks.samples.every_steps=2", steps=5)
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"step_{step:07d}.json" for step in (2, 4, 5)]


def test_nothing_is_printed_but_the_two_lines() -> None:
    """In a process of its own, where warnings are shown and not yet filtered by pytest."""
    command = [sys.executable, "-W", "default", "-m", "dlmkit.cli", "train", *TOY, "budget.tokens=64"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "hydra.run.dir=run"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    begin, end = done.stderr.splitlines()
    assert begin.endswith("run: 3,856 parameters, 2 steps of 32 tokens")
    assert end.startswith("run: nll <= ")
    assert "tokens/s" in end


def test_doctor() -> None:
    outcome = dlmkit("doctor")
    assert outcome.code == 0, outcome.err
    for word in ("torch", "attention kernels", "family=ar", "family=absorbing", "family=uniform"):
        assert word in outcome.out
    assert outcome.err == ""
