"""Loggers: what each of them is given, with the real packages where they are installed, and one of a user's own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from toy_runs import MODEL, SMALL, TOKENS, Outcome, curve, dlmkit, stop_at, summary, text_corpus, text_data


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*arguments: str, steps: int = 2, run: str = "runs/one") -> Outcome:
    data = text_data(text_corpus(Path("text.txt")))
    budget = f"budget.tokens={steps * TOKENS}"
    return dlmkit("train", *MODEL, *SMALL, *data, budget, f"hydra.run.dir={run}", *arguments)


def trained(*arguments: str, **options: Any) -> Path:
    outcome = train(*arguments, **options)
    assert outcome.code == 0, outcome.err
    assert len(outcome.err.splitlines()) == 2, outcome.err  # no logger prints anything
    assert outcome.out == ""
    return Path("runs/one")


def text_of_samples(run: Path) -> str:
    return json.loads((run / "samples/step_0000002.json").read_text())["samples"][0]["text"]


def test_tensorboard_is_the_default() -> None:
    run = trained()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert {"train/loss", "val/nll", "final/val_nll"} <= set(events.Tags()["scalars"])
    (text,) = [event.tensor_proto.string_val[0] for event in events.Tensors("samples/text_summary")]
    assert text_of_samples(run).split("\n")[0] in text.decode()
    assert "hparams" in str(events.summary_metadata)
    assert curve(run, "val/nll")


@pytest.mark.parametrize("choice", ["none", "csv", "[]"])
def test_the_table_is_always_written(choice: str) -> None:
    run = trained(f"logger={choice}")
    assert curve(run, "train/loss")
    assert curve(run, "val/nll")[-1][1] == summary(run)["val_nll"]
    assert not (run / "tensorboard").exists()
    report = dlmkit("report", "runs")
    assert report.code == 0, report.err


def test_a_resumed_run_goes_on_in_tensorboard_and_the_table() -> None:
    assert train(stop_at(3), steps=4).code == 130
    outcome = train("if_exists=resume", steps=4)
    assert outcome.code == 0, outcome.err
    run = Path("runs/one")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [0, 1, 2, 3]
    assert [step for step, _ in curve(run, "train/loss")] == [0, 1, 2, 3]


def test_wandb_offline() -> None:
    pytest.importorskip("wandb")
    run = trained("logger=[tensorboard,wandb]")
    assert curve(run, "train/loss")
    assert (run / "tensorboard").is_dir()
    (record,) = run.glob("wandb/offline-run-*/run-*.wandb")
    result = repr(summary(run)["val_nll"]).encode()
    deadline = time.monotonic() + 30  # W&B's own process closes the file
    while result not in (uploaded := record.read_bytes()):  # what `wandb sync` would send, uncompressed
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for key in ("train/loss", "val/nll", "samples", "optimizer.lr", "data.val_fraction", "final/val_nll"):
        assert key.encode() in uploaded, key
    (table,) = run.glob("wandb/offline-run-*/files/media/table/samples*.json")
    assert json.loads(table.read_text())["data"] == [[text_of_samples(run)]]


def test_runs_of_a_sweep_are_runs_of_their_own_in_wandb() -> None:
    pytest.importorskip("wandb")
    data = text_data(text_corpus(Path("text.txt")))
    sweep = [*MODEL, *SMALL, *data, f"budget.tokens={TOKENS}", "hydra.sweep.dir=runs", "logger=wandb", "seed=0,1", "-m"]
    outcome = dlmkit("train", *sweep, "hydra.sweep.subdir=${seed}")
    assert outcome.code == 0, outcome.err
    assert len(outcome.err.splitlines()) == 4, outcome.err
    records = sorted(Path("runs").glob("*/wandb/offline-run-*/run-*.wandb"))
    assert [record.parts[1] for record in records] == ["0", "1"]


def test_mlflow_on_files() -> None:
    mlflow = pytest.importorskip("mlflow")
    run = trained("logger=mlflow")
    assert not (run / "mlruns").exists()
    client = mlflow.MlflowClient(f"file:{Path('runs/mlruns').absolute()}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "runs"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("one", "FINISHED")
    assert found.data.params["seed"] == "0"
    assert found.data.metrics["final/val_nll"] == pytest.approx(summary(run)["val_nll"])
    losses = client.get_metric_history(found.info.run_id, "train/loss")
    assert [one.step for one in losses] == [step for step, _ in curve(run, "train/loss")]
    assert [one.value for one in losses] == pytest.approx([loss for _, loss in curve(run, "train/loss")])
    (artifact,) = client.list_artifacts(found.info.run_id, "samples")
    path = Path(found.info.artifact_uri.removeprefix("file:").replace("//", "/")) / artifact.path
    assert path.read_text() == text_of_samples(run)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    outcome = train(f"logger=[tensorboard,{name}]")
    assert outcome.code == 2
    assert outcome.line == f"dlmkit train: logger={name} needs the package {name}: pip install 'dlmkit[{name}]'"
    assert list(Path("runs").rglob("*")) == []


OWN_LOGGER = '''
import json
from pathlib import Path

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class Lines(Logger):
    """One JSON object per line."""

    def __init__(self, file):
        super().__init__()
        self.file = Path(file)

    name = property(lambda self: "lines")
    version = property(lambda self: "")

    def _add(self, **record):
        with self.file.open("a") as stream:
            stream.write(json.dumps(record) + "\\n")

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        self._add(metrics=metrics, step=step)

    @rank_zero_only
    def log_hyperparams(self, params):
        self._add(params=params)

    def log_text(self, key, texts, step):
        self._add(key=key, texts=list(texts), step=step)
'''
OWN_YAML = """
lines:
  _target_: my_logger.Lines
  file: ${run_dir}/lines.jsonl
"""


def test_a_logger_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One file and one YAML, outside the package."""
    Path("my_logger.py").write_text(OWN_LOGGER)
    Path("conf/logger").mkdir(parents=True)
    Path("conf/logger/lines.yaml").write_text(OWN_YAML)
    monkeypatch.syspath_prepend(Path.cwd())
    try:
        run = trained("--config-dir=conf", "logger=[tensorboard,lines]")
    finally:
        sys.modules.pop("my_logger", None)
    records = [json.loads(line) for line in (run / "lines.jsonl").read_text().splitlines()]
    losses = [one for one in records if "train/loss" in one.get("metrics", {})]
    assert [one["step"] for one in losses] == [step for step, _ in curve(run, "train/loss")]
    (texts,) = [one for one in records if "texts" in one]
    assert (texts["key"], texts["step"], texts["texts"]) == ("samples", 2, [text_of_samples(run)])
    (settings,) = [one["params"] for one in records if "params" in one]
    assert (settings["seed"], settings["length"]) == (0, 8)
    final = [one["metrics"] for one in records if "final/val_nll" in one.get("metrics", {})]
    assert [one["final/val_nll"] for one in final] == [summary(run)["val_nll"]]
