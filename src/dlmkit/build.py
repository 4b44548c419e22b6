"""Configuration -> objects. Only this file and the entry points know OmegaConf and Hydra."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.utils import get_object, instantiate
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from dlmkit import runs
from dlmkit.backbones.base import Backbone, check_token_id
from dlmkit.backbones.deferred import DeferredWeights
from dlmkit.callbacks.compiling import CompileLayers
from dlmkit.callbacks.finite import FiniteSteps
from dlmkit.checkpoints.io import KitCheckpointIO
from dlmkit.compatibility import Parts, check
from dlmkit.config import conf_dir, nearest
from dlmkit.corruption.base import Corruption
from dlmkit.data.corpora.base import Corpus
from dlmkit.data.module import CorpusDataModule
from dlmkit.data.order import BatchPlan
from dlmkit.loggers import MetricsTable, prepare
from dlmkit.module import DiffusionLM
from dlmkit.notices import notice
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.randomness import seed_for
from dlmkit.samplers.base import Sampler
from dlmkit.strategies import OWN, ShardedStrategy, check_strategy
from dlmkit.t_samplers.base import TimeSampler
from dlmkit.training.sharding import check_divisible


def build_data(config: DictConfig) -> CorpusDataModule:
    """Build the corpus and its data module, prepare them, and write the vocabulary into `config.vocab`.

    Where the sequences have a begin-of-sequence token of their own, `config.backbone` is changed to prepend none.
    """
    plan = BatchPlan(
        micro_batch_size=config.batch.micro_size,
        accumulate=config.batch.accumulate,
        num_steps=config.num_steps,
        seed=config.seed,
        num_workers=config.batch.num_workers,
    )
    corpus: Corpus = _made(config, "data", Corpus)
    corpus.prepare()
    vocabulary = corpus.vocabulary
    config.vocab = {
        "size": vocabulary.size,
        "mask_id": vocabulary.mask_id,
        "bos_id": vocabulary.bos_id,
        "eos_id": vocabulary.eos_id,
    }
    if corpus.has_bos:
        _prepend_no_bos(config)
    return CorpusDataModule(corpus, plan)


def _prepend_no_bos(config: DictConfig) -> None:
    """Leave the begin-of-sequence token to the data, which has one in every sequence."""
    if "bos" in config.backbone:
        config.backbone.bos = "none"
    elif "bos_id" in config.backbone:
        config.backbone.bos_id = None


def _made(config: DictConfig, key: str, kind: type, convert: str = "none") -> Any:
    """Instantiate a part.

    Raises:
        ValueError: it refuses its settings, or its class is of another kind.
    """
    part = instantiate(config[key], _convert_=convert)
    if not isinstance(part, kind):
        raise ValueError(f"{key}._target_ {config[key]._target_} makes no {kind.__name__}: derive its class from that")
    return part


def build_backbone(config: DictConfig) -> Backbone:
    """Build the network; `config.vocab` is filled in."""
    # Sub-configurations of third parties (a transformers config) reach the constructor as plain dictionaries.
    backbone: Backbone = _made(config, "backbone", Backbone, convert="all")
    return backbone


def build_process(config: DictConfig) -> ForwardProcess:
    """Build the forward process with its schedule."""
    process: ForwardProcess = _made(config, "process", ForwardProcess)
    return process


def build_sampler(config: DictConfig) -> Sampler[Any]:
    """Build the sampler."""
    sampler: Sampler[Any] = _made(config, "sampler", Sampler)
    return sampler


def named_sampler(name: str) -> Sampler[Any]:
    """Build a sampler of conf/sampler with its default settings.

    Raises:
        ValueError: an unknown name.
    """
    choices = sorted(path.stem for path in (conf_dir() / "sampler").glob("*.yaml"))
    if name not in choices:
        raise ValueError(f"sampler={name} is unknown: choose one of {', '.join(choices)}{nearest(name, choices)}")
    sampler: Sampler[Any] = instantiate(OmegaConf.load(conf_dir() / "sampler" / f"{name}.yaml"))
    return sampler


def build_objective(config: DictConfig) -> Objective[Any]:
    """Build the objective."""
    objective: Objective[Any] = _made(config, "objective", Objective)
    return objective


def build_parts(config: DictConfig) -> Parts:
    """Build all parts but the network, checking that they fit together.

    Raises:
        ValueError: they do not, or a part refuses its settings.
    """
    process = build_process(config)
    check_token_id("process.mask_id", process.mask_id, config.vocab.size)
    parts = Parts(
        process=process,
        objective=build_objective(config),
        corruption=_made(config, "corruption", Corruption),
        sampler=build_sampler(config),
        length=config.length,
    )
    check(parts)
    return parts


def build_module(config: DictConfig, bytes_per_token: float | None) -> DiffusionLM:
    """Build the LightningModule from every part of `config`, checking that they fit together.

    Raises:
        ValueError: they do not, or a part refuses its settings.
    """
    torch.manual_seed(seed_for(config.seed, "parts"))  # initial weights of parts that have any, such as an objective
    parts = build_parts(config)
    pl.seed_everything(config.seed, workers=True, verbose=False)  # initial weights of the network
    backbone = _split_backbone(config) if _is_sharded(config) else build_backbone(config)
    backbone.check_length(config.length)
    for remark in backbone.remarks:
        notice(remark)
    check(replace(parts, backbone=backbone, ar_weight=config.ar_weight))
    assert parts.process is not None
    assert parts.objective is not None
    assert parts.corruption is not None
    module = DiffusionLM(
        backbone=backbone,
        process=parts.process,
        corruption=parts.corruption,
        objective=parts.objective,
        t_sampler=_made(config, "t_sampler", TimeSampler),
        optimizer=instantiate(config.optimizer, _convert_="all"),
        lr_schedule=instantiate(config.lr_schedule),
        num_val_times=config.validation.check_times,
        bytes_per_token=bytes_per_token,
        ar_weight=config.ar_weight,
        seed=config.seed,
    )
    _try_optimizer(module, config)
    return module


def _split_backbone(config: DictConfig) -> Backbone:
    """Build the network without its weights, which are made once it is split."""
    with DeferredWeights() as deferred:
        backbone = build_backbone(config)
    backbone.deferred = deferred
    return backbone


def _is_sharded(config: DictConfig) -> bool:
    node = config.trainer.strategy
    return isinstance(node, DictConfig) and OWN.get(get_object(node._target_)) is ShardedStrategy


def _try_optimizer(module: DiffusionLM, config: DictConfig) -> None:
    try:
        if module.backbone.deferred is not None:  # its weights are not there yet
            optimizer = module.make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))]}])
            check_divisible(module.backbone, optimizer)
            return
        module.configure_optimizers()  # called again by Lightning; here unsuitable settings raise before a run begins
    except TypeError as error:
        raise ValueError(f"optimizer={config.optimizer._target_}: {error}") from error


def build_trainer(
    config: DictConfig, run_dir: Path, callbacks: list[pl.Callback], progress: bool, steps_done: int
) -> pl.Trainer:
    """Build the Trainer of one run, which logs and saves in `run_dir`.

    Args:
        config: composed configuration.
        run_dir: the run's folder.
        callbacks: the run's callbacks.
        progress: whether `callbacks` has a progress bar.
        steps_done: steps of a resumed run that stay in its logs.
    """
    options: dict[str, Any] = OmegaConf.to_container(config.trainer, resolve=True)  # type: ignore[assignment]
    options["strategy"] = build_strategy(options["strategy"])
    loggers = build_loggers(config, run_dir, steps_done)
    try:
        trainer = pl.Trainer(
            **options,
            plugins=KitCheckpointIO(),
            max_steps=config.num_steps,
            accumulate_grad_batches=config.batch.accumulate,
            val_check_interval=config.validation.every_steps * config.batch.accumulate,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            # Lightning adds a callback that saves beside the logs where there is none.
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_model_summary=False,
            enable_progress_bar=progress,
            default_root_dir=run_dir,
            callbacks=callbacks,
            logger=loggers,
        )
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        raise ValueError(f"trainer: {error}") from error
    check_strategy(trainer.strategy)
    return trainer


def build_strategy(node: Any) -> Any:
    """Build the strategy of `trainer.strategy`: Lightning's own words as they are, a `_target_` as an object."""
    if not isinstance(node, dict):
        return node
    target = get_object(node["_target_"])
    own = OWN.get(target, target)
    return instantiate({**node, "_target_": f"{own.__module__}.{own.__qualname__}"})


def build_loggers(config: DictConfig, run_dir: Path, steps_done: int) -> list[Logger]:
    """Build the loggers that `config.logger` names, and the one of metrics.csv, which the report reads.

    Args:
        config: composed configuration.
        run_dir: the run's folder.
        steps_done: steps of a resumed run; metrics.csv and TensorBoard keep their points and drop later ones.
    """
    prepare([str(name) for name in config.logger])
    chosen = [
        instantiate(node, **_resume_options(node, steps_done), _convert_="all") for node in config.logger.values()
    ]
    return [*chosen, MetricsTable(run_dir, runs.read_metrics(run_dir, steps_done))]


def _resume_options(node: DictConfig, steps_done: int) -> dict[str, Any]:
    kind = get_object(node._target_)
    is_tensorboard = isinstance(kind, type) and issubclass(kind, TensorBoardLogger)
    return {"purge_step": steps_done} if is_tensorboard and steps_done else {}


def build_callbacks(config: DictConfig) -> list[pl.Callback]:
    """Build the callbacks that `config.callbacks` names, and those that every run has: for NaN, and to compile."""
    callbacks: list[pl.Callback] = [instantiate(callback) for callback in config.callbacks.values()]
    callbacks += [FiniteSteps(**config.non_finite), CompileLayers(config.compile)]
    # Averaged weights come first, so that the samples at the end of training are those of the averaged model.
    return sorted(callbacks, key=lambda callback: not isinstance(callback, WeightAveraging))
