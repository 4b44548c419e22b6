"""Finds the parts by globbing conf/, so that a new part is tested without an edit here.

A part is built as a run builds it: its YAML, with the nodes that its interpolations name beside it.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from dlmkit.commands.check import MASK_ID, VOCAB_SIZE, toy_config
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Sampler, check_agreement, check_blocks
from dlmkit.schedules.base import Schedule
from dlmkit.t_samplers.base import TimeSampler

CONF = Path(__file__).parents[2] / "conf"


def names(group: str, conf: Path = CONF) -> list[str]:
    """The parts of a group: linear, log_linear, ... for "schedule"."""
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def build(
    group: str,
    name: str,
    schedule: str = "linear",
    mask_id: int | None = MASK_ID,
    vocab_size: int = VOCAB_SIZE,
    conf: Path = CONF,
    **changes: Any,
) -> Any:
    """Instantiate conf/group/name.yaml with a small vocabulary and the schedule of that name."""
    config = toy_config(
        {
            "schedule": OmegaConf.load(conf / "schedule" / f"{schedule}.yaml"),
            group: OmegaConf.load(conf / group / f"{name}.yaml"),
        },
        vocab_size,
        mask_id,
    )
    try:
        return instantiate(config[group], **changes)
    except InstantiationException as error:  # what the part itself raised is the message that users see
        raise (error.__cause__ or error) from None


def takes(group: str, name: str, key: str) -> bool:
    return key in OmegaConf.load(CONF / group / f"{name}.yaml")


def schedule(name: str) -> Schedule:
    return build("schedule", name, name)


def process(name: str, schedule: str = "linear", **keywords: Any) -> ForwardProcess:
    return build("process", name, schedule, **keywords)


def objective(name: str, **keywords: Any) -> Objective:
    return build("objective", name, **keywords)


def sampler(name: str, **keywords: Any) -> Sampler:
    return build("sampler", name, **keywords)


def t_sampler(name: str, schedule: str = "linear", **keywords: Any) -> TimeSampler:
    return build("t_sampler", name, schedule, **keywords)


def with_schedules(group: str) -> list[tuple[str, str]]:
    """Every (part, schedule); a part that takes none comes once, with "linear"."""
    return [
        (name, schedule)
        for name in names(group)
        for schedule in (names("schedule") if takes(group, name, "schedule") else ["linear"])
    ]


def noisy_processes() -> list[tuple[str, str]]:
    """Every (process, schedule) whose noise at a given t is what its coefficients say, token by token."""
    return [pair for pair in with_schedules("process") if process(*pair).noises and process(*pair).independent]


def dependent_triples() -> list[tuple[str, str, str]]:
    """Every (objective, process, schedule) that fits together, where only the mean over t is the bound's."""
    pairs = [pair for pair in with_schedules("process") if not process(*pair).independent]
    return [(name, *pair) for name, pair in product(names("objective"), pairs) if accepts(name, pair[0])]


def accepts(objective_name: str, process_name: str) -> bool:
    """Whether the objective says that it holds for the process."""
    try:
        objective(objective_name).check(process(process_name))
    except ValueError:
        return False
    return True


def fits(sampler_name: str, process_name: str) -> bool:
    """Whether some objective for the process trains what the sampler expects."""
    noise, steps = process(process_name), sampler(sampler_name)
    for name in names("objective"):
        try:
            objective(name).check(noise)
            check_agreement(objective(name).predicts, steps, noise)
            check_blocks(objective(name).block_size, steps)
        except ValueError:
            continue
        return True
    return False


def diffusion_triples() -> list[tuple[str, str, str]]:
    """Every (objective, process, schedule) that fits together and has noise; a bound in continuous time."""
    continuous = [name for name in names("objective") if objective(name).continuous]
    return [(name, *pair) for name, pair in product(continuous, noisy_processes()) if accepts(name, pair[0])]
