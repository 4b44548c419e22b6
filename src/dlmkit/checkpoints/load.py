"""Reading a run back: its configuration, its network, its tokenizer."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from dlmkit import runs
from dlmkit.backbones.base import Backbone
from dlmkit.build import build_backbone, build_process
from dlmkit.checkpoints.folder import is_folder, read_config
from dlmkit.data.tokenizers import load_tokenizer
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.processes.base import ForwardProcess

PREFIX = "backbone."


@dataclass(frozen=True)
class LoadedRun:
    """A run, ready to generate from.

    Attributes:
        config: its resolved configuration.
        backbone: the network in eval mode, on the CPU.
        process: its noise.
        tokenizer: its tokenizer, or ``None`` where the data had none.
    """

    config: DictConfig
    backbone: Backbone
    process: ForwardProcess
    tokenizer: Tokenizer | None


def load_run(path: Path) -> LoadedRun:
    """Load a run folder, a checkpoint in it, or a Hugging Face folder.

    Raises:
        ValueError: nothing of the kind at `path`, or weights that do not fit the configuration.
    """
    if is_folder(path):
        described, own_tokenizer = read_config(path)
        return LoadedRun(described, build_backbone(described).eval(), build_process(described), own_tokenizer)
    folder, checkpoint = runs.checkpoint_of(path)
    config = OmegaConf.load(folder / runs.CONFIG)
    assert isinstance(config, DictConfig)
    backbone = build_backbone(config)
    load_backbone_weights(backbone, checkpoint)
    tokenizer = load_tokenizer(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
    return LoadedRun(config, backbone.eval(), build_process(config), tokenizer)


def num_steps_of(file: Path) -> int:
    """Return the optimizer steps behind a checkpoint of Lightning's, reading nothing else of it."""
    return int(torch.load(file, map_location="cpu", weights_only=False, mmap=True)["global_step"])


def load_backbone_weights(backbone: Backbone, file: Path) -> None:
    """Copy the network's weights from a checkpoint file, every key and shape checked.

    Raises:
        ValueError: a damaged file; missing, extra or differently shaped weights.
    """
    if not zipfile.is_zipfile(file):  # the container that torch.save writes
        raise ValueError(f"{file} is no checkpoint, or is damaged: name another one, or train again")
    saved = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    weights = {key.removeprefix(PREFIX): value for key, value in saved.items() if key.startswith(PREFIX)}
    own, expected = backbone.state_dict(), backbone.weights_to_save()
    for kind, keys in (("lacks", expected - weights.keys()), ("has the unknown", weights.keys() - own.keys())):
        if keys:
            raise ValueError(
                f"{file} {kind} weight {min(keys)}: it was made by another kind of backbone; set the same one"
            )
    for key, value in weights.items():
        if own[key].shape != value.shape:
            raise ValueError(
                f"{file} has {key} of shape {tuple(value.shape)}, this backbone wants {tuple(own[key].shape)}:"
                " use the same backbone sizes and tokenizer as the run it comes from"
            )
    backbone.load_state_dict({**own, **weights})
