"""metrics.csv, and the loggers beside it: text and hyperparameters through any of them, and what they need."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from dlmkit.files import write_text

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow"}
"""Choice of conf/logger -> the package that it imports, which an extra of the same name installs."""

QUIET = {
    "WANDB_SILENT": "true",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",
}
"""Defaults of environment variables: no lines on the terminal, no reports to the makers, files as MLflow's store."""


@runtime_checkable
class TextLogger(Protocol):
    """A `Logger` that also takes text: what a logger of one's own implements to be given the samples."""

    def log_text(self, key: str, texts: Sequence[str], step: int) -> None:
        """Log texts under `key` at an optimizer step."""


def prepare(names: Collection[str]) -> None:
    """Check that the packages of the named loggers are installed, and set the environment that they read.

    Raises:
        ValueError: a package is missing; one line with the command that installs it.
    """
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise ValueError(f"logger={name} needs the package {PACKAGES[name]}: pip install 'dlmkit[{name}]'")
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    if "wandb" in names:
        import wandb

        wandb.setup()  # reads the environment; wandb.init would print warnings before it does


class MetricsTable(CSVLogger):
    """metrics.csv, from which a killed process takes no row that was there before: Lightning's begins a new file.

    Args:
        run_dir: the run's folder.
        rows: of a resumed run, which stay; rows of the file that are not among them go.
    """

    def __init__(self, run_dir: Path, rows: Sequence[Mapping[str, str]]) -> None:
        super().__init__(run_dir, name="", version="", flush_logs_every_n_steps=1)
        self.rows = rows

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer, which makes the file when it is first used."""
        if self._experiment is None:
            self._experiment = _TableWriter(self.log_dir, self.rows)
        return self._experiment


class _TableWriter(ExperimentWriter):
    """Appends rows; where a column is new, the file is replaced in one step."""

    def __init__(self, log_dir: str, rows: Sequence[Mapping[str, str]]) -> None:
        super().__init__(log_dir)
        path = Path(self.metrics_file_path)
        self.metrics_keys = sorted({key for row in rows for key in row})
        if rows:
            self._replace(rows)
        else:
            path.unlink(missing_ok=True)

    def _check_log_dir_exists(self) -> None:
        """Leave the file as it is until its successor is there."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with open(self.metrics_file_path, newline="") as file:
            self._replace(list(csv.DictReader(file)))

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(self.metrics_file_path), table.getvalue())


@rank_zero_only
def log_text(loggers: Iterable[Logger], key: str, texts: Sequence[str], step: int) -> None:
    """Log generated texts: as text in TensorBoard, a table in W&B, artifacts in MLflow, by `TextLogger` elsewhere."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(key, "\n\n---\n\n".join(map(_as_code, texts)), step)
        elif isinstance(logger, WandbLogger):
            logger.log_text(key, columns=["text"], data=[[text] for text in texts], step=step)
        elif isinstance(logger, MLFlowLogger):
            for number, text in enumerate(texts):
                logger.experiment.log_text(logger.run_id, text, f"{key}/step_{step:07d}_{number}.txt")
        elif isinstance(logger, TextLogger):
            logger.log_text(key, texts, step)


@rank_zero_only
def log_hyperparams(
    loggers: Iterable[Logger], hyperparameters: Mapping[str, Any], metrics: Mapping[str, float]
) -> None:
    """Log a run's settings with its final metrics; metrics.csv has neither, since config.yaml and summary.json do.

    Args:
        loggers: of the run.
        hyperparameters: flat settings, all of them numbers, texts or truth values.
        metrics: results by name, such as "final/val_nll".
    """
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            continue
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(hyperparameters), dict(metrics))  # one record of both, for the HParams tab
        else:
            logger.log_hyperparams(dict(hyperparameters))
            logger.log_metrics(dict(metrics))
        logger.save()


@rank_zero_only
def close(loggers: Iterable[Logger]) -> None:
    """End what a logger would otherwise keep open in this process: W&B adds the next run of a sweep to an open one."""
    if any(isinstance(logger, WandbLogger) for logger in loggers):
        import wandb

        wandb.finish()


def _as_code(text: str) -> str:
    """Indent a text, so that Markdown shows it as it is."""
    return "    " + text.replace("\n", "\n    ")
