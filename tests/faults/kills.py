"""Kills a run at random moments, resumes it, and compares its end with that of a run that was left alone.

    python tests/faults/kills.py --times 50 --report report.json

Runs are killed with SIGKILL, also inside a save and between any two changes of their folder: one kind of them that many
times, the others a fifth of it.
Its processes are forked from this one, which has imported everything, so that a kill costs less than a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import torch

from dlmkit.checkpoints.verify import newest_whole
from toy_runs import TOKENS, TOY, checkpoint, dlmkit, metrics, summary

STEPS = 12  # validated and saved after every second
BLOCKS = ["family=block", "objective.block_size=2"]
VARIANTS = {
    "plain": ["family=absorbing"],
    "ema": ["family=absorbing", "callbacks=[samples,throughput,lr,checkpoint,ema]", "callbacks.ema.decay=0.5"],
    "learned": ["family=absorbing", "t_sampler=learned", "t_sampler.num_bins=4", "t_sampler.warmup_draws=2"],
    "stateful": ["family=absorbing", "objective._target_=stateful.Rescaled"],
    "growth": [*BLOCKS, "+callbacks.growth={_target_: stateful.Growth}"],
    "workers": ["family=absorbing", "batch.num_workers=2"],
    "accumulate": ["family=uniform", "batch.accumulate=2"],
    "complementary": ["family=absorbing", "corruption=complementary"],
    "bf16": ["family=absorbing", "trainer.precision=bf16-mixed"],
    "ar": ["family=ar"],
}
"""Kinds of runs, each with a state of its own."""

EMA = ["callbacks=[samples,throughput,lr,checkpoint,ema]", "callbacks.ema.decay=0.5"]
TIMES = ["t_sampler=learned", "t_sampler.num_bins=4", "t_sampler.warmup_draws=2"]
OTHERS = {
    "everything": ["family=absorbing", *EMA, *TIMES, "objective._target_=stateful.Rescaled", "batch.accumulate=2"]
}
"""For the tests: much at once."""

CLOCKS = ("train/time", "train/device/", "epoch")  # columns of metrics.csv that depend on the machine's speed
SAME = ("val_nll", "val_nll_stderr", "steps", "tokens_seen", "total_tokens", "flops", "total_flops", "block_size")
FOLDER_CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")
MOST_CHANGES = 200  # of a run's folder


@dataclass
class Kill:
    """One kill that struck.

    Attributes:
        how: "time" (a random moment), "save" (while a checkpoint is half written) or "change" (before a random change
            of the run's folder).
        when: seconds after the process began, or the number of the change.
        half_files: unfinished files that it left.
        steps: of the newest whole checkpoint then, by its name, or ``None``.
    """

    how: str
    when: float
    half_files: int
    steps: str | None


@dataclass
class Result:
    """What became of one kind of run.

    Attributes:
        variant: its name.
        kills: that it took.
        runs: that ended, each compared with one that was left alone.
        differences: of those, empty when nothing was lost.
    """

    variant: str
    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    differences: list[str] = field(default_factory=list)


def forked(work: Callable[[], int]) -> int:
    """Run `work` in a child process with a process group of its own, and return its id."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        code = 70
        try:
            code = work()
        finally:
            os._exit(code)
    os.setpgid(child, child)  # here too: a kill may come before the child has run at all
    return child


def train(run: Path, variant: str, change: int | None = None) -> int:
    """Train or resume; the process kills itself before the given change of the run's folder."""
    if change is not None:
        _die_at(run, change)
    resume = ["if_exists=resume", f"hydra.run.dir={run}", f"budget.tokens={STEPS * TOKENS}", "logger=none"]
    return dlmkit("train", *TOY, *resume, *(VARIANTS | OTHERS)[variant]).code


def _die_at(run: Path, change: int) -> None:
    seen = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in FOLDER_CHANGES or not str(arguments[0]).startswith(str(run)):
            return
        if event == "open" and not set(arguments[1] or "r") & set("wax+"):
            return
        seen += 1
        if seen == change:
            os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)


def strike(run: Path, variant: str, how: str, seconds: float, generator: random.Random) -> Kill | None:
    """Start the run and kill it; return ``None`` where it ended before that.

    Args:
        run: its folder.
        variant: its kind.
        how: see `Kill`.
        seconds: that a whole run takes.
        generator: of the moment.
    """
    change = generator.randint(1, MOST_CHANGES) if how == "change" else None
    when = float(change) if change is not None else generator.uniform(0.0, seconds)
    began = time.perf_counter()
    child = forked(lambda: train(run, variant, change))
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        late = time.perf_counter() - began > when
        saving = how == "save" and late and any((run / "checkpoints").glob(".*"))
        if saving or (how == "time" and late):
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return _kill(run, how, time.perf_counter() - began)
        time.sleep(0.0002)
    ended = (run / "summary.json").is_file() and summary(run)["status"] == "finished"
    return _kill(run, how, when) if how == "change" and not ended else None


def _kill(run: Path, how: str, when: float) -> Kill:
    files = list((run / "checkpoints").glob("*.ckpt"))
    newest = newest_whole(files).file if files else None
    return Kill(how, round(when, 4), len(list(run.rglob(".*.*.*"))), None if newest is None else newest.stem)


def differences(run: Path, whole: Path) -> list[str]:
    """Return what of a run's end is not that of a run that was left alone, to the bit."""
    found = []
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "parts", "settings"):
        mine, other = (checkpoint(folder).get(key) for folder in (run, whole))
        if not _equal(mine, other):
            found.append(key)
    if rows(run) != rows(whole):
        found.append("metrics.csv")
    found += [key for key in SAME if summary(run)[key] != summary(whole)[key]]
    found += [f"left {path.relative_to(run)}" for path in run.rglob(".*.*.*")]
    return found


def rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of metrics.csv without clocks."""
    return [{key: row[key] for key in sorted(row) if not key.startswith(CLOCKS)} for row in metrics(run)]


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def survive(variant: str, times: int, folder: Path, seed: int) -> Result:
    """Kill runs of one kind that many times in all, let each end, and compare."""
    generator, result = random.Random(f"{variant} {seed}"), Result(variant)
    whole, run = folder / "whole", folder / "run"
    assert train(whole, variant) == 0  # in this process, which then has everything that a child needs
    shutil.rmtree(whole)
    began = time.perf_counter()
    assert os.waitpid(forked(lambda: train(whole, variant)), 0)[1] == 0
    seconds = time.perf_counter() - began
    while len(result.kills) < times:
        how = ("save", "time", "change")[(len(result.kills) + result.runs) % 3]
        kill = strike(run, variant, how, seconds, generator)
        if kill is not None:
            result.kills.append(kill)
        else:
            _end(run, whole, variant, result)
    _end(run, whole, variant, result)
    return result


def _end(run: Path, whole: Path, variant: str, result: Result) -> None:
    status = os.waitpid(forked(lambda: train(run, variant)), 0)[1]
    found = differences(run, whole) if status == 0 else [f"the resumed run ended with status {status}"]
    result.runs += 1
    result.differences += found
    shutil.rmtree(run)


def report(results: list[Result], seed: int) -> dict[str, Any]:
    """Return the results as JSON."""
    kills = [kill for result in results for kill in result.kills]
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "seed": seed,
        "kills": len(kills),
        "by_moment": dict(Counter(kill.how for kill in kills)),
        "inside_a_write": sum(kill.half_files > 0 for kill in kills),
        "runs_compared": sum(result.runs for result in results),
        "lost": sum(bool(result.differences) for result in results),
        "variants": {
            result.variant: {
                "runs_compared": result.runs,
                "differences": result.differences,
                "kills": [f"{kill.how} {kill.when}, newest {kill.steps}" for kill in result.kills],
            }
            for result in results
        },
    }


def main(arguments: list[str] | None = None) -> int:
    """Run all or some variants, and return 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--times", type=int, default=5, help="kills of the first variant; the others get a fifth")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=[*VARIANTS, *OTHERS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = []
    for variant in options.variants:
        with tempfile.TemporaryDirectory() as folder:
            times = options.times if variant == options.variants[0] else -(-options.times // 5)
            results.append(survive(variant, times, Path(folder), options.seed))
        print(variant, len(results[-1].kills), "kills,", results[-1].differences or "nothing lost", flush=True)
    content = report(results, options.seed)
    if options.report is not None:
        options.report.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({key: value for key, value in content.items() if key != "variants"}))
    return int(content["lost"] > 0)


if __name__ == "__main__":
    sys.exit(main())
