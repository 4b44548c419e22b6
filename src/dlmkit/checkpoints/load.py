"""Reading a trained model back: its configuration, its parts, its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from dlmkit import runs
from dlmkit.backbones.base import Backbone
from dlmkit.build import build_backbone, build_objective, build_process, build_sampler
from dlmkit.checkpoints.container import read_without_tensors
from dlmkit.checkpoints.folder import is_folder, read_config
from dlmkit.checkpoints.parts import read_parts
from dlmkit.checkpoints.shards import read_whole
from dlmkit.config import register_resolvers
from dlmkit.data.tokenizers import load_tokenizer
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.generation import for_block_size
from dlmkit.inference.model import LoadedModel
from dlmkit.module import BACKBONE
from dlmkit.parts import Part, walk
from dlmkit.trust import check_targets


def load(path: str | Path, trust: Sequence[str] = ()) -> LoadedModel:
    """Load a run folder, a checkpoint in it, or a Hugging Face folder.

    Args:
        path: the folder or the checkpoint.
        trust: packages, modules or classes, such as "my_parts", that the folder's configuration may name beside the
            kit's own parts; importing them runs their code.

    Raises:
        ValueError: nothing of the kind at `path`, a damaged file, a part that is not trusted, or weights that do not
            fit the configuration.
    """
    register_resolvers()
    path = Path(path)
    if is_folder(path):
        config, tokenizer = read_config(path, trust)
        return _with_parts(config, build_backbone(config), tokenizer)
    folder, file = runs.checkpoint_of(path)
    loaded = read_parts(folder / runs.CONFIG, trust)
    content = read_whole(file)
    block_size = content["settings"]["block_size"]
    if block_size is not None:  # it may have grown during training
        loaded.objective.block_size = block_size
    _build_without_pretrained(loaded, content, trust, file)
    backbone = build_backbone(loaded)
    _copy_weights(backbone, content, file)
    tokenizer = load_tokenizer(folder / "tokenizer", trust) if (folder / "tokenizer").is_dir() else None
    model = _with_parts(loaded, backbone, tokenizer)
    _restore({"process": model.process, "objective": model.objective}, content)
    return model


def _build_without_pretrained(config: DictConfig, content: dict[str, Any], trust: Sequence[str], file: Path) -> None:
    """Have a network whose weights are all in the checkpoint built from its configuration, not from another folder."""
    network = content["settings"].get("network")  # checkpoints of 0.2 and before have none
    if network is not None:
        check_targets(network, Part, trust, f"{file}: settings.network")
        config.backbone.name, config.backbone.config = None, network


def _with_parts(config: DictConfig, backbone: Backbone, tokenizer: Tokenizer | None) -> LoadedModel:
    objective = build_objective(config)
    sampler = for_block_size(build_sampler(config), objective.block_size)
    return LoadedModel(config, backbone.eval(), build_process(config), objective, sampler, tokenizer)


def _restore(parts: Mapping[str, Part], content: dict[str, Any]) -> None:
    """Give parts, and those inside them, the state that they have in a checkpoint."""
    for name, part in walk(parts):
        if isinstance(part, nn.Module):
            saved = content["state_dict"].items()
            prefix = f"{name}."
            part.load_state_dict({key.removeprefix(prefix): value for key, value in saved if key.startswith(prefix)})
        else:
            part.load_state_dict(content["parts"].get(name, {}))


def num_steps_of(file: Path) -> int:
    """Return the optimizer steps behind a checkpoint, without reading the rest of it."""
    return int(read_without_tensors(file)["global_step"])


def load_backbone_weights(backbone: Backbone, file: Path) -> None:
    """Copy the network's weights from a checkpoint file, every key and shape checked.

    Raises:
        ValueError: a damaged file; missing, extra or differently shaped weights.
    """
    _copy_weights(backbone, read_whole(file), file)


def _copy_weights(backbone: Backbone, content: dict[str, Any], file: Path) -> None:
    saved = content["state_dict"]
    weights = {key.removeprefix(BACKBONE): value for key, value in saved.items() if key.startswith(BACKBONE)}
    own, expected = backbone.state_dict(), backbone.weights_to_save()
    for kind, keys in (("lacks", expected - weights.keys()), ("has an unexpected", weights.keys() - own.keys())):
        if keys:
            raise ValueError(
                f"{file} {kind} weight {min(keys)}: it was made by another kind of backbone; set the same one"
            )
    for key, value in weights.items():
        if own[key].shape != value.shape:
            raise ValueError(
                f"{file} has {key} of shape {tuple(value.shape)}, this backbone needs {tuple(own[key].shape)}:"
                " use the same backbone sizes and tokenizer as the run it comes from"
            )
    if backbone.deferred is None:
        backbone.load_state_dict({**own, **weights})
        return
    for key, parameter in backbone.named_parameters():
        if key in weights:
            backbone.deferred.read_from(parameter, lambda rows, value=weights[key]: value[rows])  # type: ignore[misc]
