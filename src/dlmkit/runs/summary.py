"""summary.json: the record of a run, its one reader and its one writer. Never imports torch."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from dlmkit.files import write_json

SUMMARY = "summary.json"

Status = Literal["running", "finished", "failed", "interrupted"]
STATUSES: tuple[str, ...] = get_args(Status)

NEEDED_WHEN_FINISHED = ("val_nll", "val_nll_stderr", "val_ppl", "val_tokens")
ADDED_LATER = ("t_sampler", "val_reconstruction", "val_prior", "corruption", "block_size", "precision", "error")
"""Keys that records of earlier releases lack; all are null then."""
MOST_NAMED = 3  # absent keys in a message
REMEDY = "train that run again, or move its folder away"


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """The record of one run, from its first step on. The JSON has these fields as keys, in this order.

    Attributes:
        experiment: name of the experiment, or ``None`` for a single run.
        name: of the run's folder.
        family: the preset of parts, or ``None`` without one.
        objective: loss and bound.
        process: forward process (noise).
        corruption: how noisy tokens are drawn, or ``None`` where the process alone decides.
        schedule: of alpha(t); ``None`` for a process without one.
        backbone: network.
        sampler: of generated text.
        t_sampler: of training times.
        data: data set.
        precision: that it trains in, in Lightning's words; ``None`` in records of earlier releases.
        params: number of parameters, tied ones once.
        block_size: tokens per block of block diffusion at the last step, or ``None`` without blocks.
        init_from: name of the run that this one started from, or ``None``.
        nll_is_exact: whether `val_nll` is a likelihood rather than an upper bound on -log p.
        entropy_per_token: of the data's source, nats per token, where it is known.
        seed: of weights, order and noise.
        git_commit: of the working directory, with "+" for uncommitted changes; ``None`` outside a repository.
        data_fingerprint: 16 hex digits that name tokens and split.
        dlmkit_version: that trained it.
        steps: optimizer steps done.
        tokens_seen: training tokens of this run, each once however many noisy copies it had.
        total_tokens: with those of the run that it started from.
        flops: training FLOPs of this run.
        total_flops: with those of the run that it started from.
        tokens_per_second: training speed, noisy copies counted; ``None`` before the first step.
        peak_memory_bytes: peak allocated on a GPU, or largest resident size after a step on a CPU.
        wall_seconds: from start to now, validation and samples included.
        val_nll: final validation, nats per token; ``None`` until then, like all fields that begin with val_.
        val_nll_stderr: its standard error over validation sequences.
        val_reconstruction: the bound's term at t = 0, nats per token; part of `val_nll`.
        val_prior: the bound's term at t = 1, nats per token; part of `val_nll`.
        val_ppl: exp(val_nll).
        val_bpb: bits per byte; ``None`` without text.
        val_tokens: scored tokens.
        val_t_grid: times per sequence; ``None`` for an exact likelihood.
        status: what became of the run.
        error: why it failed or was interrupted, in one line; ``None`` otherwise.
    """

    experiment: str | None
    name: str
    family: str | None
    objective: str
    process: str
    corruption: str | None = None
    schedule: str | None
    backbone: str
    sampler: str
    t_sampler: str | None = None
    data: str
    precision: str | None = None
    params: int
    block_size: int | None = None
    init_from: str | None
    nll_is_exact: bool
    entropy_per_token: float | None
    seed: int
    git_commit: str | None
    data_fingerprint: str
    dlmkit_version: str
    steps: int = 0
    tokens_seen: int = 0
    total_tokens: int = 0
    flops: float = 0.0
    total_flops: float = 0.0
    tokens_per_second: float | None = None
    peak_memory_bytes: int = 0
    wall_seconds: float = 0.0
    val_nll: float | None = None
    val_nll_stderr: float | None = None
    val_reconstruction: float | None = None
    val_prior: float | None = None
    val_ppl: float | None = None
    val_bpb: float | None = None
    val_tokens: int | None = None
    val_t_grid: int | None = None
    status: Status = "running"
    error: str | None = None

    @property
    def finished(self) -> bool:
        """Whether the run trained to its end and was validated."""
        return self.status == "finished"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as summary.json has them."""
        return dataclasses.asdict(self)

    def write(self, run_dir: Path) -> None:
        """Write summary.json into the run's folder in one step."""
        write_json(run_dir / SUMMARY, self.to_dict())

    @classmethod
    def read(cls, run_dir: Path) -> RunSummary | None:
        """Return the record in a run's folder, or ``None`` when there is none yet. Unknown keys are left out.

        Raises:
            ValueError: a file that is damaged or that no run wrote; one line with file, field and remedy.
        """
        file = run_dir / SUMMARY
        if not file.is_file():
            return None
        content = read_json(file, REMEDY)
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds no JSON object, so it is no run's record: {REMEDY}")
        names = [field.name for field in dataclasses.fields(cls)]
        absent = [name for name in names if name not in content and name not in ADDED_LATER]
        if absent:
            more = f" and {len(absent) - MOST_NAMED} more keys" if len(absent) > MOST_NAMED else ""
            raise ValueError(f"{file} lacks {', '.join(absent[:MOST_NAMED])}{more}, so it is no run's record: {REMEDY}")
        summary = cls(**{name: _checked(file, name, content[name]) for name in names if name in content})
        for name in NEEDED_WHEN_FINISHED if summary.finished else ():
            if content[name] is None:
                raise ValueError(f"{file} has {name} null in a finished run, where it must be a number: {REMEDY}")
        return summary


_TYPES = get_type_hints(RunSummary)
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def _checked(file: Path, name: str, value: Any) -> Any:
    if name == "status":
        allowed, fits = ", ".join(STATUSES), value in STATUSES
    else:
        kinds = get_args(_TYPES[name]) or (_TYPES[name],)
        allowed, fits = " or ".join(_NAMES[kind] for kind in kinds), any(_is_a(value, kind) for kind in kinds)
    if not fits:
        raise ValueError(f"{file} has {name} {value!r}, which must be {allowed}: {REMEDY}")
    return value


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float)) if kind is float else isinstance(value, kind)


def read_json(file: Path, remedy: str) -> Any:
    """Return a JSON file's content.

    Raises:
        ValueError: it is no JSON, or no UTF-8 text; one line that names the file and ends with `remedy`.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON ({error.msg}, line {error.lineno}): {remedy}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {remedy}") from error
