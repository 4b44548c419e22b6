"""The precision of a run where `trainer.precision` is `auto`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

KEY = "trainer.precision"
AUTO = "auto"
ON_A_GPU = "bf16-mixed"
ELSEWHERE = "32-true"


def precision_here(accelerator: str) -> str:
    """Return what `auto` is on this machine: bf16-mixed on GPUs with bf16 instructions, 32-true on all others.

    By this rule alone and not by timing, so that members of a sweep on machines of one kind never differ; what would
    pay, `dlmkit doctor` measures.

    Args:
        accelerator: trainer.accelerator.
    """
    import torch  # only where it is asked for: a command that is refused does not wait for it

    on_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return ON_A_GPU if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else ELSEWHERE


def keep_precision(config: DictConfig, recorded: Mapping[str, Any]) -> None:
    """Set `auto` to the precision that a run was begun in, where `auto` may have chosen it.

    A run then goes on as it was begun wherever the same command continues it, and a finished one stays finished.

    Args:
        config: composed configuration, changed in place.
        recorded: dotted keys and values of the run's config.yaml.
    """
    if config.trainer.precision == AUTO and recorded.get(KEY) in (ON_A_GPU, ELSEWHERE):
        config.trainer.precision = recorded[KEY]


def settle_precision(config: DictConfig, typed: str | int | None) -> str | None:
    """Set `auto` to what it is here, and return a line where the run goes on in another precision than that.

    Args:
        config: composed configuration, changed in place.
        typed: trainer.precision as it was composed, before `keep_precision`.
    """
    if typed != AUTO:
        return None
    here = precision_here(config.trainer.accelerator)
    if config.trainer.precision == AUTO:
        config.trainer.precision = here
    kept = config.trainer.precision
    return None if kept == here else f"goes on in {kept}, as it was begun; {KEY}=auto would be {here} here"
