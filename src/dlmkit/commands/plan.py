"""`dlmkit plan`: what a run needs, before anything is spent. Nothing is trained, downloaded or written."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dlmkit.backbones.base import Backbone
from dlmkit.build import build_backbone, build_parts
from dlmkit.compatibility import Parts, check
from dlmkit.config import check_overrides, check_values, compose
from dlmkit.planning.devices import device_of
from dlmkit.planning.job import Job, Strategy, precision_of
from dlmkit.planning.plan import Assumptions, Plan, make_plan
from dlmkit.planning.pretrained import shape_of
from dlmkit.planning.show import show

TRACED = {"flash_attention_2": "sdpa", "flex_attention": "sdpa"}
"""Kernels of attention that a plan has no device for, and the one that keeps the same tensors."""


def main(options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Print the plan of the run that `dlmkit train *overrides` would be.

    Raises:
        ValueError: settings that no run can have, or a shape that would have to be downloaded.
    """
    plan = plan_of(options, list(overrides))
    if options.json:
        text = json.dumps({"settings": list(overrides), **plan.as_json()}, indent=2)
    else:
        text = f"dlmkit plan {' '.join(overrides)}\n\n{show(plan)}"
    sys.stdout.write(f"{text}\n")


def plan_of(options: argparse.Namespace, overrides: list[str]) -> Plan:
    """Return the plan of a run.

    Args:
        options: of the command line; see `cli`.
        overrides: Hydra's.
    """
    for override in overrides:
        if override.startswith("-"):
            raise ValueError(f"{override} is no flag of `dlmkit plan`: settings are key=value, see dlmkit plan --help")
    if options.devices is not None:
        overrides = [*overrides, *_on_devices(options.devices, overrides)]
    config = compose(overrides, Path("."))
    check_overrides(config, overrides)
    check_values(config)
    device = device_of(options.on, options.memory, options.peak)
    job = job_of(config, options.vocab_size, device.kind)
    if job.strategy == "fsdp2":
        job.check_divisible()
    return make_plan(job, Assumptions(device, options.utilisation, options.price))


def _on_devices(devices: int, overrides: list[str]) -> list[str]:
    """Return the overrides that put a run on one machine of `devices` devices."""
    if devices < 1:
        raise ValueError(f"--devices {devices} is no number of devices: give one of at least 1")
    settings = [f"trainer.devices={devices}", "trainer.num_nodes=1"]
    strategy = compose(overrides, Path(".")).trainer.strategy
    if isinstance(strategy, DictConfig) and "data_parallel_size" in strategy:
        settings.append(f"trainer.strategy.data_parallel_size={devices}")
    return settings


def job_of(config: DictConfig, vocab_size: int | None, device_type: str) -> Job:
    """Return what is planned, from the configuration; `config.vocab` and `config.backbone` are filled in.

    Args:
        config: composed.
        vocab_size: V, where the user states it.
        device_type: "cpu" or "cuda".
    """
    checkpointing = bool(config.backbone.get("gradient_checkpointing", False))
    if config.backbone.get("name") is not None:
        _take_shape(config, vocab_size)
    else:
        _set_vocabulary(config, vocab_size or _vocab_size(config))
    parts = build_parts(config)
    assert parts.process is not None
    assert parts.objective is not None
    assert parts.corruption is not None
    ranks = config.trainer.devices * config.trainer.num_nodes
    return Job(
        backbones=_networks(config, parts),
        objective=parts.objective,
        process=parts.process,
        corruption=parts.corruption,
        ar_weight=config.ar_weight,
        optimizer=instantiate(config.optimizer, _convert_="all"),
        length=config.length,
        batch_size=config.batch.size,
        accumulate=config.batch.accumulate,
        tokens=config.num_steps * config.batch.size * config.length,
        ranks=ranks,
        strategy=_strategy(config, ranks),
        precision=precision_of(str(config.trainer.precision), device_type),
        checkpointing=checkpointing,
        device_type=device_type,
    )


def _networks(config: DictConfig, parts: Parts) -> dict[bool, Backbone]:
    """Return the network on the meta device, by gradient checkpointing where it has that."""
    for key in ("attention", "attention_with_mask"):
        if config.backbone.get(key) in TRACED:
            config.backbone[key] = TRACED[config.backbone[key]]
    networks = {}
    for checkpointing in (False, True) if "gradient_checkpointing" in config.backbone else (False,):
        if "gradient_checkpointing" in config.backbone:
            config.backbone.gradient_checkpointing = checkpointing
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            networks[checkpointing] = build_backbone(config)
        networks[checkpointing].check_length(config.length)
        check(Parts(**{**vars(parts), "backbone": networks[checkpointing], "ar_weight": config.ar_weight}))
    return networks


def _take_shape(config: DictConfig, vocab_size: int | None) -> None:
    """Put the shape of a pretrained model in the place of its name, with a row for a new mask token."""
    shape = shape_of(str(config.backbone.name))
    rows = int(shape.pop("vocab_size"))
    if vocab_size is None and config.tokenizer.get("name") != config.backbone.name:
        raise ValueError(
            f"backbone.name {config.backbone.name!r} with another tokenizer: state its number of ids, the mask"
            " included, with --vocab-size"
        )
    mask = config.tokenizer.get("mask")
    _set_vocabulary(config, vocab_size or rows + int(mask == "new"), mask if isinstance(mask, int) else None)
    OmegaConf.update(config, "backbone.name", None)
    OmegaConf.update(config, "backbone.config", shape, force_add=True)


def _vocab_size(config: DictConfig) -> int:
    """Return V where the settings decide it; the data is not read.

    Raises:
        ValueError: it depends on the data.
    """
    for section in (config.tokenizer, config.data):
        if isinstance(section.get("vocab_size"), int):
            return int(section.vocab_size)
    if str(config.tokenizer.get("_target_")).endswith(".Bytes"):
        return 258
    raise ValueError("the vocabulary comes with the data, which a plan does not read: state its size with --vocab-size")


def _set_vocabulary(config: DictConfig, size: int, mask_id: int | None = None) -> None:
    """Fill in the vocabulary: the ids of special tokens decide no cost."""
    config.vocab = {"size": size, "mask_id": size - 1 if mask_id is None else mask_id, "bos_id": 0, "eos_id": 0}


def _strategy(config: DictConfig, ranks: int) -> Strategy:
    """Return how ranks share the work.

    Raises:
        ValueError: a strategy whose memory is not known here.
    """
    given: Any = config.trainer.strategy
    settings = given if isinstance(given, DictConfig) else {}
    name = str(settings.get("_target_", given)).rpartition(".")[2]
    if name in ("ModelParallelStrategy", "ShardedStrategy"):
        if settings.get("cpu_offload") or settings.get("tensor_parallel_size", 1) not in (1, "auto"):
            raise ValueError(
                "trainer.strategy with cpu_offload or tensor_parallel_size above 1 cannot be planned: leave them out"
            )
        return "fsdp2"
    if name == "auto" or name.lower().startswith("ddp"):
        return "single" if ranks == 1 else "ddp"
    raise ValueError(
        f"trainer.strategy {name!r} cannot be planned: set strategy=ddp or strategy=fsdp2, or leave it out"
    )
