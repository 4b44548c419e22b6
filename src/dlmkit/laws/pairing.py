"""Which laws are checked on which combinations of parts; `dlmkit check` and the tests share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from dlmkit.backbones.base import Backbone
from dlmkit.compatibility import Parts, fit
from dlmkit.corruption.base import Corruption
from dlmkit.generation import for_block_size
from dlmkit.laws import (
    backbones,
    boundary_terms,
    corruption,
    discrete_time,
    objectives,
    orders,
    processes,
    remasking,
    samplers,
    schedules,
    sharpening,
    t_samplers,
)
from dlmkit.laws.findings import Finding, Law, findings_of
from dlmkit.objectives.base import Objective
from dlmkit.parts import Part
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Sampler
from dlmkit.schedules.base import Schedule
from dlmkit.t_samplers.base import TimeSampler

INTERFACES: dict[str, type] = {
    "schedule": Schedule,
    "process": ForwardProcess,
    "corruption": Corruption,
    "objective": Objective,
    "t_sampler": TimeSampler,
    "sampler": Sampler,
    "backbone": Backbone,
}
"""The groups that have laws, and the class that their parts derive from."""

SAMPLER_LAWS = [*samplers.LAWS, *orders.LAWS, *remasking.LAWS, *sharpening.LAWS]
"""Of a sampler and a process."""

LARGE = 20_000_000
"""A backbone with more parameters than this is checked only when it is named."""


@dataclass(frozen=True)
class Toy:
    """The vocabulary that parts are built for, small enough to enumerate.

    The mask is neither the first nor the last id, so that an id mistaken for an index among the data tokens is noticed.
    """

    vocab_size: int = 4
    mask_id: int | None = 1
    bos_id: int | None = None
    causal: bool = False


TOY = Toy()
MASKLESS = Toy(mask_id=None)
WIDE = Toy(vocab_size=samplers.WIDE)
WORDS = Toy(vocab_size=13, bos_id=2)
"""For backbones, of which nothing is enumerated."""


@dataclass(frozen=True)
class Candidate:
    """A part that may be checked, before it is built.

    Attributes:
        group: "schedule", "process", ...
        name: a YAML of conf/, or an import path.
        takes_schedule: whether its constructor is given the schedule.
        make: builds it for a vocabulary, beside the candidates that its settings refer to. Raises ValueError.
        node: the settings themselves, for `make` of other candidates.
    """

    group: str
    name: str
    takes_schedule: bool
    make: Callable[[Toy, Sequence[Candidate]], Part]
    node: Any = None

    @property
    def label(self) -> str:
        """group=name."""
        return f"{self.group}={self.name}"

    def build(self, *others: Candidate, toy: Toy = TOY) -> Any:
        """Build the part beside others.

        Raises:
            ValueError: the part refuses its settings.
        """
        return self.make(toy, others)


Candidates = Mapping[str, Sequence[Candidate]]
"""The candidates of every group."""


@dataclass(frozen=True)
class Job:
    """One law on one combination of parts.

    Attributes:
        part: the label that the findings stand under.
        paired: what the part is tested with, such as "schedule=linear"; "" for a part alone.
        subject: the part alone, such as "objective=masked".
        rests_on: the other parts involved; where one of them violates a law, this one would fail because of it.
        run: returns the findings.
    """

    part: str
    paired: str
    subject: str
    rests_on: frozenset[str]
    run: Callable[[], list[Finding]]


def plan(candidates: Candidates, named: set[str]) -> list[Job]:
    """Return a job for each law and each combination of candidates that involves a named group.

    Args:
        candidates: of every group; of a named group those that the user named.
        named: the groups that the user named parts of; all combinations where it is empty.

    Raises:
        ValueError: a candidate of a named group fits none of the parts that it may be paired with.
    """
    kinds = (
        schedule_jobs, process_jobs, corruption_jobs, objective_jobs, t_sampler_jobs, sampler_jobs, backbone_jobs
    )  # fmt: skip
    jobs = [job for kind in kinds for job in kind(candidates, named)]
    for group in named:
        for part in candidates[group]:
            if not any(part.label in {job.subject, *job.rests_on} for job in jobs):
                raise ValueError(
                    f"{part.label} fits none of the parts that it was named with: name it alone, or with parts that"
                    " it holds for"
                )
    return jobs


# Combinations


def with_schedules(candidates: Candidates, group: str) -> Iterator[tuple[Candidate, ...]]:
    """Yield the candidates of a group, each with every schedule if it takes one."""
    for part in candidates[group]:
        if part.takes_schedule:
            yield from ((part, schedule) for schedule in candidates["schedule"])
        else:
            yield (part,)


def objective_cases(candidates: Candidates) -> Iterator[tuple[Candidate, ...]]:
    """Yield (objective, process, schedule if any) where the objective holds for the process."""
    for part, noise in product(candidates["objective"], list(with_schedules(candidates, "process"))):
        if fit(Parts(process=noise[0].build(*noise[1:]), objective=part.build(*noise))):
            yield (part, *noise)


def corruption_cases(candidates: Candidates) -> Iterator[tuple[Candidate, ...]]:
    """Yield (corruption, process, schedule if any) where the corruption draws the noise of the process."""
    for part, noise in product(candidates["corruption"], list(with_schedules(candidates, "process"))):
        if fit(Parts(process=noise[0].build(*noise[1:]), corruption=part.build(*noise))):
            yield (part, *noise)


def sampler_cases(candidates: Candidates) -> Iterator[tuple[Candidate, ...]]:
    """Yield (sampler, process, schedule if any) where some objective trains what the sampler needs."""
    for part, noise in product(candidates["sampler"], list(with_schedules(candidates, "process"))):
        process, sampler = noise[0].build(*noise[1:]), part.build(*noise)
        if any(_trains(one.build(*noise), sampler, process) for one in candidates["objective"]):
            yield (part, *noise)


def _trains(objective: Objective[Any], sampler: Sampler[Any], process: ForwardProcess) -> bool:
    """Return whether the objective trains what the sampler needs, in blocks of the objective's size if in any."""
    return fit(Parts(process=process, objective=objective, sampler=for_block_size(sampler, objective.block_size)))


# Jobs


def schedule_jobs(candidates: Candidates, named: set[str]) -> Iterator[Job]:
    """Yield the jobs of schedules, each alone."""
    for part in candidates["schedule"]:
        yield from _jobs(named, schedules.LAWS, [part], part.build())


def process_jobs(candidates: Candidates, named: set[str]) -> Iterator[Job]:
    """Yield the jobs of processes under every schedule, with a mask token and, where they allow that, without."""
    for part, *others in with_schedules(candidates, "process"):
        laws = [*processes.LAWS, samplers.law_reverse_chain]
        yield from _jobs(named, laws, [part, *others], part.build(*others))
        try:
            maskless = part.build(*others, toy=MASKLESS)
        except ValueError:  # the process needs a mask token
            continue
        yield from _jobs(named, processes.LAWS, [part, *others], maskless)


def corruption_jobs(candidates: Candidates, named: set[str]) -> Iterator[Job]:
    """Yield the jobs of corruptions under every process and schedule that they are for."""
    for part, noise, *others in corruption_cases(candidates):
        arguments = part.build(noise, *others), noise.build(*others)
        yield from _jobs(named, corruption.LAWS, [part, noise, *others], *arguments)


def objective_jobs(candidates: Candidates, named: set[str]) -> Iterator[Job]:
    """Yield the jobs of objectives under every process and schedule that they hold for."""
    laws = [*objectives.LAWS, *boundary_terms.LAWS, *discrete_time.LAWS]
    for part, noise, *others in objective_cases(candidates):
        arguments = part.build(noise, *others), noise.build(*others)
        yield from _jobs(named, laws, [part, noise, *others], *arguments)


def t_sampler_jobs(candidates: Candidates, named: set[str]) -> Iterator[Job]:
    """Yield the jobs of time samplers, under every schedule if they take one."""
    for part, *others in with_schedules(candidates, "t_sampler"):
        yield from _jobs(named, t_samplers.LAWS, [part, *others], part.build(*others))


def sampler_jobs(candidates: Candidates, named: set[str]) -> Iterator[Job]:
    """Yield the jobs of samplers with every process they are for, under one schedule unless schedules were named."""
    linear = [part for part in candidates["schedule"] if part.name == "linear"]
    few = candidates["schedule"] if "schedule" in named else linear or candidates["schedule"][:1]
    for part, noise, *others in sampler_cases({**candidates, "schedule": few}):
        sampler = part.build(noise, *others)
        yield from _jobs(named, SAMPLER_LAWS, [part, noise, *others], sampler, noise.build(*others))
        wide = noise.build(*others, toy=WIDE)
        yield from _jobs(named, [samplers.law_tail], [part, noise, *others], sampler, wide)
    for part in candidates["sampler"]:
        yield from _jobs(named, [samplers.law_times], [part], part.build())


def backbone_jobs(candidates: Candidates, named: set[str]) -> Iterator[Job]:
    """Yield the jobs of backbones with random weights, bidirectional and causal; of large ones only when named."""
    if named and "backbone" not in named:
        return
    for part in candidates["backbone"]:
        for causal in (False, True):
            toy = Toy(WORDS.vocab_size, WORDS.mask_id, WORDS.bos_id, causal)
            if not named and backbones.num_params(lambda part=part, toy=toy: part.build(toy=toy)) > LARGE:  # type: ignore[misc]
                continue
            network = backbones.with_random_weights(part.build(toy=toy))
            yield from _jobs(named, backbones.LAWS, [part], network, setting=f"causal={str(causal).lower()}")


def _jobs(
    named: set[str], laws: Sequence[Law], involved: Sequence[Candidate], *arguments: Any, setting: str = ""
) -> Iterator[Job]:
    """Yield the laws of involved[0] if a named part is involved.

    The label contains its name, those of named others, and the setting that it is tested in, if there are several.
    """
    main, *others = involved
    if named and not any(part.group in named for part in involved):
        return
    shown = [main.label, *(part.label for part in others if part.group in named), setting]
    label = ", ".join(filter(None, shown))
    paired = ", ".join(part.label for part in others if part.group not in named)
    rests_on = frozenset(part.label for part in others)
    for law in laws:
        yield Job(label, paired, main.label, rests_on, lambda law=law: findings_of(law, label, *arguments))  # type: ignore[misc]
