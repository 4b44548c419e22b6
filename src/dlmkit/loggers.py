"""Loggers beside metrics.csv: text and hyperparameters through any of them, and what they need around a run."""

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
from typing_extensions import override

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


class MetricsTable(CSVLogger):
    """metrics.csv, which every run writes: Lightning's logger, except that no row is lost when the process is killed.

    Lightning's deletes the file of a resumed run, and writes it again in place for every new column.

    Args:
        run_dir: the run's folder.
        rows: of a resumed run, as they were read: the table begins with them.
    """

    def __init__(self, run_dir: Path, rows: Sequence[Mapping[str, str]]) -> None:
        super().__init__(run_dir, name="", version="", flush_logs_every_n_steps=1)
        self._run_dir = run_dir
        self._rows = rows

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> _TableWriter:
        """What writes the file, made when the first row is written."""
        if self._experiment is None:
            self._experiment = _TableWriter(self._run_dir, self._rows)
        assert isinstance(self._experiment, _TableWriter)
        return self._experiment


class _TableWriter(ExperimentWriter):
    def __init__(self, run_dir: Path, rows: Sequence[Mapping[str, str]]) -> None:
        super().__init__(str(run_dir))
        self.metrics_keys = sorted({column for row in rows for column in row})
        if rows:
            self._replace(self.metrics_keys, rows)

    @override
    def _check_log_dir_exists(self) -> None:
        """Leave the file of a resumed run until it is replaced."""

    @override
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        self._replace(fieldnames, rows)

    def _replace(self, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(Path(self.metrics_file_path), table.getvalue())
