"""Reading what a folder says its parts are, without trusting it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from dlmkit.parts import Part
from dlmkit.trust import TARGET, check_targets

PARTS = ("backbone", "process", "objective", "sampler")
"""Sections of which a trained model is built."""


def read_parts(file: Path, trust: Sequence[str]) -> DictConfig:
    """Return a run's configuration, resolved, of which every part may be built.

    Args:
        file: config.yaml of a run, or dlmkit.yaml of a Hugging Face folder.
        trust: import paths that the parts may have, beside the kit's own.

    Raises:
        ValueError: a damaged file, or a part that is neither the kit's nor trusted.
    """
    try:
        config = OmegaConf.load(file)
        content = OmegaConf.to_container(config, resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({type(error).__name__}): take another copy, or train again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no settings: take another copy, or train again")
    for name in PARTS:
        section = content.get(name)
        if not isinstance(section, dict) or TARGET not in section:
            raise ValueError(f"{file} has no {name} with a {TARGET}: take another copy, or train again")
        check_targets(section, Part, trust, f"{file}: {name}")
    return OmegaConf.create(content)
