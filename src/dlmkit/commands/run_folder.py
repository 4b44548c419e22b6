"""What `dlmkit train` writes into a run's folder and reads from it: configuration, record, tokenizer, marker."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dlmkit import __version__, runs
from dlmkit.checkpoints.verify import remove_orphans
from dlmkit.config import keep_precision, run_name
from dlmkit.files import remove_partials, write_text
from dlmkit.nested import flatten
from dlmkit.runs import Changes, ParentRun, RunSummary

if TYPE_CHECKING:
    from dlmkit.callbacks.record import RunRecord
    from dlmkit.data.corpora.base import Corpus
    from dlmkit.module import DiffusionLM

FOLLOW_BLOCK_SIZE = ("objective.block_size", "sampler.block_size")
"""Keys of config.yaml that change where training changes the block size."""


class Settings(NamedTuple):
    """A configuration, flattened to dotted keys.

    Attributes:
        values: key -> value, resolved.
        derived: keys, or sections, that follow from others.
    """

    values: dict[str, Any]
    derived: list[str]


def settings_of(config: DictConfig) -> Settings:
    """Return the values of a composed configuration, and which of them follow from others."""
    values = flatten(resolved(config))
    written = flatten(OmegaConf.to_container(config, resolve=False))
    return Settings(values, [key for key, value in written.items() if isinstance(value, str) and "${" in value])


def compare_settings(run_dir: Path, config: DictConfig) -> Changes:
    """Return what differs between the settings that a run was begun with and those of now.

    `trainer.precision=auto` stands for the one that it was begun in, which is written into `config`.

    Raises:
        ValueError: the run's config.yaml is damaged.
    """
    file = run_dir / runs.CONFIG
    if not file.is_file():
        raise ValueError(f"{file} is missing, so the run cannot be continued: set if_exists=overwrite to start over")
    try:
        recorded = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ValueError(f"{file} is damaged ({_first_line(error)}): set if_exists=overwrite to start over") from error
    if not isinstance(recorded, dict) or not recorded:
        raise ValueError(f"{file} is damaged (it has no settings): set if_exists=overwrite to start over")
    marker = runs.Marker.read(run_dir)
    initial = {} if marker is None else marker.initial
    values = {**flatten(recorded), **initial}
    keep_precision(config, values)
    now = copy.deepcopy(config)
    for key in now.vocab:  # known only when the data has been read, which has a check of its own
        now.vocab[key] = values.get(f"vocab.{key}")
    current = settings_of(now)
    return runs.compare(values, current.values, current.derived)


def check_data(run_dir: Path, corpus: Corpus) -> None:
    """Check that a run goes on with the data that it was begun with.

    Raises:
        ValueError: the data has changed, for example a file that it is read from.
    """
    summary = RunSummary.read(run_dir)
    if summary is not None and summary.data_fingerprint != corpus.fingerprint:
        raise ValueError(
            f"{run_dir} was begun on data with data_fingerprint {summary.data_fingerprint}, which is now"
            f" {corpus.fingerprint}: restore the files that it is read from, or set if_exists=overwrite to start over"
        )


def open_folder(run_dir: Path, config: DictConfig, corpus: Corpus, resumed: bool) -> None:
    """Write what a run's folder holds before the first step; a run that is there and not resumed is moved aside."""
    values = settings_of(config).values
    initial = {key: values[key] for key in FOLLOW_BLOCK_SIZE if values.get(key) is not None}
    runs.open_folder(run_dir, runs.Marker.new(__version__, initial), resumed)
    remove_partials(run_dir)
    remove_orphans(run_dir / runs.CHECKPOINTS)
    write_config(run_dir, resolved(config), None)
    if corpus.tokenizer is not None:
        corpus.tokenizer.save(run_dir / "tokenizer")


def write_config(run_dir: Path, settings: dict[str, Any], block_size: int | None) -> None:
    """Write config.yaml from resolved settings, with the block size that training has reached."""
    content = copy.deepcopy(settings)
    if block_size is not None:
        content["objective"]["block_size"] = block_size
        if content["sampler"].get("block_size") is not None:
            content["sampler"]["block_size"] = block_size
    write_text(run_dir / runs.CONFIG, OmegaConf.to_yaml(OmegaConf.create(content)))


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain dictionaries, without interpolations."""
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def starting_run(config: DictConfig, run_dir: Path, overrides: list[str]) -> ParentRun | None:
    """Return the run that `init_from` names, by a path or as a sibling in the same sweep, or ``None``.

    Raises:
        ValueError: it does not exist or has not finished.
    """
    if config.init_from is None:
        return None
    if not isinstance(config.init_from, DictConfig):
        return runs.read_parent(Path(config.init_from))
    from hydra_plugins.dlmkit_in_order.sweeper import sibling

    changes = {str(key): config.init_from[key] for key in config.init_from}
    kept = [o for o in overrides if o.partition("=")[0].lstrip("+") not in ("experiment", "if_exists")]
    try:
        return runs.read_parent(run_dir.parent / run_name(",".join(sorted(sibling(kept, changes)))))
    except ValueError as error:
        pretrained = config.backbone.get("name")
        if pretrained is None:
            raise
        raise ValueError(
            f"family={config.member} starts from an autoregressive run of the same sweep, and there is none: to start"
            f" from a pretrained model, set experiment=adapt backbone.name={pretrained} in its place"
        ) from error


def describe(
    config: DictConfig,
    run_dir: Path,
    choices: dict[str, Any],
    parent: ParentRun | None,
    module: DiffusionLM,
    corpus: Corpus,
) -> RunSummary:
    """Return the record of a run before its first step."""
    return RunSummary(
        experiment=choices["experiment"],
        name=run_dir.name,
        family=choices["family"],
        objective=choices["objective"],
        process=choices["process"],
        corruption=choices["corruption"],
        schedule=choices["schedule"] if "schedule" in config.process else None,
        backbone=choices["backbone"],
        sampler=choices["sampler"],
        t_sampler=choices["t_sampler"],
        data=choices["data"],
        precision=None if config.trainer.precision is None else str(config.trainer.precision),
        params=module.backbone.num_params,
        block_size=module.block_size,
        init_from=None if parent is None else parent.name,
        nll_is_exact=module.objective.exact,
        entropy_per_token=corpus.entropy_per_token,
        seed=config.seed,
        git_commit=runs.git_commit(),
        data_fingerprint=corpus.fingerprint,
        dlmkit_version=__version__,
    )


def bytes_per_token(corpus: Corpus) -> float | None:
    """Return UTF-8 bytes per validation token, or ``None`` where the data is not text."""
    return None if corpus.val_bytes is None else corpus.val_bytes / corpus.num_val_tokens


def make_record(
    config: DictConfig,
    run_dir: Path,
    choices: dict[str, Any],
    parent: ParentRun | None,
    module: DiffusionLM,
    summary: RunSummary,
) -> RunRecord:
    """Return the callback that keeps a run's summary.json."""
    from dlmkit.callbacks.record import RunRecord
    from dlmkit.training.budget import flops_per_token

    content = resolved(config)  # during the training Hydra cannot resolve it
    settings = {**flatten(content), **choices}
    return RunRecord(
        run_dir,
        summary,
        parent,
        {key: value for key, value in settings.items() if isinstance(value, (bool, int, float, str))},
        lambda: flops_per_token(module, config.length),
        config.batch.size * config.length,
        module.corruption.num_copies,
        lambda block_size: write_config(run_dir, content, block_size),
    )
