"""Trains a toy for hours and watches what it takes from the machine: memory, files, processes and disk must stay flat.

    python tests/faults/soak.py --minutes 120 --report report.json

Everything that lasts is on: a worker process, the EMA, samples, throughput, a validation and a checkpoint at every 50th
step. The second fifth of the time is compared with the last. SIGTERM or SIGINT end the watch early, with a report.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy_runs import MODEL, SMALL, text_corpus, text_data

ENDLESS = 3 * 10**10  # tokens, of nearly 10**9 steps
SETTINGS = [
    "callbacks=[ema,samples,throughput,checkpoint]",
    "callbacks.ema.decay=0.9",
    "batch.num_workers=1",
    "validation.every_steps=50",
    "trainer.log_every_n_steps=10",
    f"budget.tokens={ENDLESS}",
]
GROWTH = 1.03  # of memory: at most so much more in the last fifth than in the second
FLAT = ("descriptors", "children", "temporary_files")  # these may not grow at all
MEMORY = ("memory", "worker_memory", "checkpoint_bytes", "temporary_bytes")
LOGS = ("metrics_bytes", "tensorboard_bytes", "samples_bytes")  # these grow with the steps
POINTS = 60  # of a series in the report, at most
FEWEST = 10  # samples that can be judged


@dataclass(frozen=True)
class Sample:
    """What the run has taken at one moment.

    Attributes:
        seconds: since the watch began.
        steps: optimizer steps done, by metrics.csv.
        memory: resident bytes of the training process.
        worker_memory: those of its children together, pages that they share with it included.
        descriptors: open files of all of them.
        children: number of child processes.
        checkpoint_bytes: of the folder checkpoints/.
        temporary_bytes: of the folder for temporary files.
        temporary_files: in it.
        metrics_bytes: of metrics.csv.
        tensorboard_bytes: of tensorboard/.
        samples_bytes: of samples/.
    """

    seconds: float
    steps: int
    memory: int
    worker_memory: int
    descriptors: int
    children: int
    checkpoint_bytes: int
    temporary_bytes: int
    temporary_files: int
    metrics_bytes: int
    tensorboard_bytes: int
    samples_bytes: int


@dataclass
class Watch:
    """Everything that was seen.

    Attributes:
        samples: one after the other.
        minutes: that the run was watched for.
        ended_early: by itself, with a line on standard error, or ``None``.
        exit_code: of the training, which SIGINT ends with 130.
    """

    samples: list[Sample] = field(default_factory=list)
    minutes: float = 0.0
    ended_early: str | None = None
    exit_code: int | None = None


def resident(pid: int) -> int:
    """Return the resident bytes of a process; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def descriptors(pid: int) -> int:
    """Return the number of files that a process has open; 0 where it has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def descendants(pid: int) -> list[int]:
    """Return the processes below one."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        found = [
            int(child) for task in tasks for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return found + [below for child in found for below in descendants(child)]


def sizes(folder: Path) -> list[int]:
    """Return the sizes of all files below a folder; one that is renamed meanwhile is left out."""
    found = []
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        try:
            if path.is_file():
                found.append(path.stat().st_size)
        except FileNotFoundError:
            continue
    return found


def steps_done(run: Path) -> int:
    """Return the step of the last row of metrics.csv."""
    with (run / "metrics.csv").open("rb") as file:
        column = file.readline().decode().strip().split(",").index("step")
        file.seek(max(file.tell(), file.seek(0, os.SEEK_END) - 4096))
        rows = re.findall(rb"^.*\n", file.read(), re.MULTILINE)[-1:]
    return int(rows[0].split(b",")[column]) if rows else 0


def sample(pid: int, run: Path, temporary: Path, seconds: float) -> Sample:
    """Take one sample of a run whose first checkpoint is there."""
    children = descendants(pid)
    kept = sizes(temporary)
    return Sample(
        seconds=round(seconds, 1),
        steps=steps_done(run),
        memory=resident(pid),
        worker_memory=sum(map(resident, children)),
        descriptors=sum(map(descriptors, [pid, *children])),
        children=len(children),
        checkpoint_bytes=sum(sizes(run / "checkpoints")),
        temporary_bytes=sum(kept),
        temporary_files=len(kept),
        metrics_bytes=sum(sizes(run / "metrics.csv")),
        tensorboard_bytes=sum(sizes(run / "tensorboard")),
        samples_bytes=sum(sizes(run / "samples")),
    )


def start(folder: Path) -> subprocess.Popen[str]:
    """Start the training in `folder`/run, with `folder`/tmp for temporary files and `folder`/errors for its lines."""
    (folder / "tmp").mkdir()
    data = text_data(text_corpus(folder / "t.txt", documents=400))
    overrides = [*MODEL, *SMALL, *data, *SETTINGS, f"hydra.run.dir={folder / 'run'}"]
    with (folder / "errors").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "dlmkit.cli", "train", *overrides],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            env={**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches this process alone, which stops the training itself
        )


def watch(folder: Path, minutes: float, every: float, stop: threading.Event) -> Watch:
    """Train in a folder, and take a sample every so many seconds, until the time is over or `stop` is set."""
    seen = Watch()
    training = start(folder)
    try:
        ready = folder / "run" / "checkpoints"
        while training.poll() is None and not list(ready.glob("*.ckpt")) and not stop.is_set():
            time.sleep(0.1)
        began = time.monotonic()
        while training.poll() is None and time.monotonic() - began < 60 * minutes and not stop.is_set():
            seen.samples.append(sample(training.pid, folder / "run", folder / "tmp", time.monotonic() - began))
            stop.wait(every)
        seen.minutes = round((time.monotonic() - began) / 60, 2)
        if training.poll() is not None:
            seen.ended_early = (folder / "errors").read_text()[-2000:] or "without a word"
        training.send_signal(signal.SIGINT)
        seen.exit_code = training.wait(timeout=120)
    finally:
        training.kill()
        training.wait()
    return seen


def fifth(samples: list[Sample], number: int) -> list[Sample]:
    """Return one of five parts of the samples, counted from 0."""
    return samples[len(samples) * number // 5 : len(samples) * (number + 1) // 5]


def growth(samples: list[Sample]) -> list[str]:
    """Return a line for everything that is larger in the last fifth than it may be."""
    if len(samples) < FEWEST:
        return [f"{len(samples)} samples are too few to judge: at least {FEWEST}"]
    found = []
    for name in (*MEMORY, *FLAT):
        before, after = (median(getattr(one, name) for one in fifth(samples, number)) for number in (1, 4))
        if after > before * (GROWTH if name in MEMORY else 1):
            found.append(f"{name} grew from {before:.0f} to {after:.0f}")
    return found


def per_step(samples: list[Sample]) -> dict[str, float]:
    """Return the bytes that each log grows by in a step."""
    first, last = samples[0], samples[-1]
    steps = max(1, last.steps - first.steps)
    return {name: round((getattr(last, name) - getattr(first, name)) / steps, 2) for name in LOGS}


def processor() -> str:
    """Return the kind of processor."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return names[0] if names else platform.machine()


def report(seen: Watch) -> dict[str, Any]:
    """Return the result as JSON, with at most `POINTS` points of each series."""
    samples = seen.samples
    thinned = [samples[len(samples) * point // POINTS] for point in range(POINTS)] if len(samples) > POINTS else samples
    found = growth(samples)
    if seen.ended_early is not None:
        found.append(f"the training ended by itself: {seen.ended_early}")
    elif seen.exit_code != 130:
        found.append(f"the training ended with exit code {seen.exit_code} after SIGINT")
    medians = {} if len(samples) < FEWEST else {name: _medians(samples, name) for name in (*MEMORY, *FLAT)}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "lightning", "transformers", "datasets")},
        "minutes": seen.minutes,
        "steps": samples[-1].steps if samples else 0,
        "samples": len(samples),
        "exit_code": seen.exit_code,
        "grew": found,
        "medians_of_fifths": medians,
        "log_bytes_per_step": per_step(samples) if samples else {},
        "series": {name: [asdict(one)[name] for one in thinned] for name in Sample.__dataclass_fields__},
    }


def _medians(samples: list[Sample], name: str) -> list[float]:
    return [median(getattr(one, name) for one in fifth(samples, number)) for number in range(5)]


def _stopper() -> threading.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    note: Callable[..., None] = lambda *_: stop.set()  # noqa: E731
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, note)
    return stop


def main(arguments: list[str] | None = None) -> int:
    """Train, watch and report; return 1 where something grew."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, default=5, help="seconds between two samples")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args(arguments)
    stop = _stopper()
    with tempfile.TemporaryDirectory() as folder:
        content = report(watch(Path(folder), options.minutes, options.every, stop))
    if options.report is not None:
        options.report.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps({key: value for key, value in content.items() if key != "series"}))
    return int(bool(content["grew"]))


if __name__ == "__main__":
    sys.exit(main())
