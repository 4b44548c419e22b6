"""Parts at a size to enumerate, by the name of their YAML in conf/; a new part is tested without an edit here.

Which combinations there are is decided by dlmkit.laws.pairing, as for `dlmkit check`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from dlmkit.commands.check import candidates
from dlmkit.corruption.base import Corruption
from dlmkit.laws import pairing
from dlmkit.laws.findings import Law
from dlmkit.laws.pairing import TOY, Candidate, Toy
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Sampler
from dlmkit.schedules.base import Schedule
from dlmkit.t_samplers.base import TimeSampler

CONF = Path(__file__).parents[2] / "conf"
VOCAB_SIZE = TOY.vocab_size
assert TOY.mask_id is not None
MASK_ID = TOY.mask_id

Case = tuple[str, ...]
"""Names of parts that are built together, such as (objective, process, schedule)."""


def names(group: str, conf: Path = CONF) -> list[str]:
    """Return the parts of a group: linear, log_linear, ... for "schedule"."""
    return sorted(path.stem for path in (conf / group).glob("*.yaml"))


def candidate(group: str, name: str, conf: Path = CONF, **changes: Any) -> Candidate:
    """Return the part of conf/group/name.yaml, not yet built, with some of its keywords changed."""
    node = OmegaConf.merge(OmegaConf.load(conf / group / f"{name}.yaml"), changes)
    assert isinstance(node, DictConfig)
    return candidates.candidate(group, name, node)


def build(
    group: str,
    name: str,
    schedule: str = "linear",
    mask_id: int | None = MASK_ID,
    vocab_size: int = VOCAB_SIZE,
    conf: Path = CONF,
    **changes: Any,
) -> Any:
    """Build conf/group/name.yaml with a small vocabulary and the schedule of that name."""
    part = candidate(group, name, conf, **changes)
    beside = [] if group == "schedule" else [candidate("schedule", schedule, conf)]
    return part.build(*beside, toy=Toy(vocab_size, mask_id))


def schedule(name: str) -> Schedule:
    return build("schedule", name)


def process(name: str, schedule: str = "linear", **keywords: Any) -> ForwardProcess:
    return build("process", name, schedule, **keywords)


def corruption(name: str, **keywords: Any) -> Corruption:
    return build("corruption", name, **keywords)


def objective(name: str, **keywords: Any) -> Objective:
    return build("objective", name, **keywords)


def sampler(name: str, **keywords: Any) -> Sampler:
    return build("sampler", name, **keywords)


def t_sampler(name: str, schedule: str = "linear", **keywords: Any) -> TimeSampler:
    return build("t_sampler", name, schedule, **keywords)


def takes(group: str, name: str, key: str) -> bool:
    return key in candidate(group, name).node


# Combinations

CANDIDATES = {group: [candidate(group, name) for name in names(group)] for group in pairing.INTERFACES}
LINEAR = {**CANDIDATES, "schedule": [candidate("schedule", "linear")]}


def named(found: Iterable[tuple[Candidate, ...]]) -> list[Case]:
    """Return the names of combinations; the schedule last, "linear" where no part takes one."""
    cases = []
    for parts in found:
        alone = tuple(part.name for part in parts if part.group != "schedule")
        cases.append((*alone, *(part.name for part in parts if part.group == "schedule")))
        if parts[-1].group != "schedule":
            cases[-1] = (*alone, "linear")
    return cases


def with_schedules(group: str) -> list[Case]:
    """Every (part, schedule)."""
    return named(pairing.with_schedules(CANDIDATES, group))


def noisy_processes() -> list[Case]:
    """Every (process, schedule) with noise."""
    return [case for case in with_schedules("process") if process(*case).has_noise]


def objective_cases(candidates: pairing.Candidates = CANDIDATES) -> list[Case]:
    """Every (objective, process, schedule) that fits together."""
    return named(pairing.objective_cases(candidates))


def diffusion_triples() -> list[Case]:
    """Those whose bound is an integral over t."""
    return [case for case in objective_cases() if case[1] != "none" and objective(case[0]).num_steps is None]


def corruption_cases(candidates: pairing.Candidates = CANDIDATES) -> list[Case]:
    """Every (corruption, process, schedule) that fits together."""
    return named(pairing.corruption_cases(candidates))


def sampler_cases() -> list[tuple[str, str]]:
    """Every (sampler, process) that fits together."""
    return [(sampler, process) for sampler, process, _ in named(pairing.sampler_cases(LINEAR))]


def params(cases: Iterable[Case]) -> list:
    """Return the cases as parameters of a test."""
    return [pytest.param(*case, id="-".join(case)) for case in cases]


def applying(laws: Sequence[Law], cases: Iterable[Case], make: Callable[..., tuple[Any, ...]]) -> list:
    """Return (law, case) as parameters of a test, for each case whose parts `make(*case)` the law applies to."""
    return [
        pytest.param(law, case, id=f"{law.name}-{'-'.join(case)}")
        for case in cases
        for arguments in [make(*case)]
        for law in laws
        if law.why_not(*arguments) is None
    ]
