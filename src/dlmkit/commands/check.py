"""`dlmkit check`: the laws, on the parts that are named or on all of conf/."""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from dlmkit import config
from dlmkit.backbones.base import Backbone
from dlmkit.laws import backbones, ends, objectives, processes, samplers, schedules, t_samplers
from dlmkit.laws.findings import Finding, Law, findings_of
from dlmkit.objectives.base import Objective
from dlmkit.processes.base import ForwardProcess
from dlmkit.samplers.base import Sampler, check_agreement
from dlmkit.schedules.base import Schedule
from dlmkit.t_samplers.base import TimeSampler

SEAMS: dict[str, type] = {
    "schedule": Schedule,
    "process": ForwardProcess,
    "objective": Objective,
    "t_sampler": TimeSampler,
    "sampler": Sampler,
    "backbone": Backbone,
}
"""The groups that have laws, and the class that their parts derive from."""

# Small enough to enumerate; the mask is neither the first nor the last id, so that an id taken for a rank shows.
VOCAB_SIZE = 4
MASK_ID = 1

NUM_WORDS, BOS_ID = 13, 2
"""The vocabulary of a backbone, of which nothing is enumerated, and its BOS."""
LARGE = 20_000_000
"""Parameters from which on a backbone is checked only when it is named."""

FILLED_IN = {"schedule": "${schedule}", "vocab_size": "${vocab.size}", "mask_id": "${vocab.mask_id}"}
"""Keywords that the other parts of a configuration give to a class that is named by its import path."""

FILLED_IN_BACKBONE = {**FILLED_IN, "bos_id": "${vocab.bos_id}", "causal": "${causal}", "shift": "${causal}"}
"""The same of a backbone."""

LAW_BROKEN = 1


@dataclass(frozen=True)
class Part:
    """A part that was named, before it is built.

    Attributes:
        group: "schedule", "process", ...
        name: a YAML of conf/, or an import path.
        node: what Hydra instantiates.
    """

    group: str
    name: str
    node: DictConfig

    @property
    def label(self) -> str:
        """group=name."""
        return f"{self.group}={self.name}"

    @property
    def takes_schedule(self) -> bool:
        """Whether its constructor is given the schedule."""
        return "schedule" in self.node


@dataclass(frozen=True)
class Job:
    """Laws to run on one part.

    Attributes:
        part: under which label the findings stand.
        paired: what the part is tested with, such as "schedule=linear"; "" for a part alone.
        subject: the part alone, such as "objective=masked".
        rests_on: the other parts involved; where one of them breaks a law, this one would fail for its sake.
        run: what returns the findings.
    """

    part: str
    paired: str
    subject: str
    rests_on: frozenset[str]
    run: Callable[[], list[Finding]]


def main(arguments: Sequence[str], json_file: Path | None) -> int:
    """Run the laws, print the table, and return the exit code.

    Args:
        arguments: part=name and part.key=value; none for all parts of conf/.
        json_file: where the findings go as well.

    Returns:
        0 when every law holds, 1 when one does not.

    Raises:
        ValueError: a part that does not exist, cannot be built, or fits nothing that it was named with.
    """
    begin = time.perf_counter()
    jobs = list(plan(*select(arguments)))
    console = Console(width=None if sys.stdout.isatty() else 140)
    found, left_out = run(jobs)
    findings = worst_of(found)
    console.print(table(findings))
    for line in failures(findings):
        console.print(Text(line), soft_wrap=True)
    for part, count in left_out.items():
        console.print(Text(f"{count} laws of other parts that rest on {part} were not run"), soft_wrap=True)
    broken = sum(not finding.passed for finding in findings)
    seconds = time.perf_counter() - begin
    num_parts = len({finding.part for finding in findings})
    shown = "1 part" if num_parts == 1 else f"{num_parts} parts"
    console.print(f"{len(findings) - broken} of {len(findings)} laws hold, {shown}, {seconds:.0f} s")
    if json_file is not None:
        json_file.write_text(as_json(findings, seconds), encoding="utf-8")
    return LAW_BROKEN if broken else 0


# What is to be checked


def select(arguments: Sequence[str]) -> tuple[dict[str, list[Part]], set[str]]:
    """Return the parts of every group, and the groups that were named (the others bring what they are paired with)."""
    names: dict[str, list[str]] = {}
    changes: dict[str, list[str]] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        group, dot, _ = key.partition(".")
        if not equals or not value:
            raise ValueError(f"{argument!r} is not part=name: write, for example, schedule=linear")
        if group not in SEAMS:
            raise ValueError(
                f"{group!r} is no part that has laws: choose one of {', '.join(SEAMS)}"
                f"{config.nearest(group, list(SEAMS))}"
            )
        if dot:
            changes.setdefault(group, []).append(argument.partition(".")[2])
        else:
            names.setdefault(group, []).extend(value.split(","))
    for group in changes:
        if group not in names:
            raise ValueError(f"{group}.{changes[group][0]} without a part: say which, such as {group}=NAME")
    parts = {
        group: [find_part(group, name, changes.get(group, [])) for name in names.get(group, part_names(group))]
        for group in SEAMS
    }
    return parts, set(names)


def part_names(group: str) -> list[str]:
    """Return the parts of conf/group: linear, log_linear, ... for "schedule"."""
    return sorted(path.stem for path in (config.conf_dir() / group).glob("*.yaml"))


def find_part(group: str, name: str, changes: Sequence[str] = ()) -> Part:
    """Return the part of that name in conf/, or the class at that import path, with `changes` ("key=value") made."""
    file = config.conf_dir() / group / f"{name}.yaml"
    if file.is_file():
        node = OmegaConf.load(file)
    elif "." in name:
        node = class_node(group, name, [change.partition("=")[0] for change in changes])
    else:
        choices = part_names(group)
        raise ValueError(
            f"{group}={name} is unknown: choose one of {', '.join(choices)}{config.nearest(name, choices)}, or give a"
            f" class by its import path, such as {group}=my_package.my_module.MyClass"
        )
    assert isinstance(node, DictConfig)
    for change in changes:
        key = change.partition("=")[0]
        if key not in node:
            keys = [str(one) for one in node if not str(one).startswith("_")]
            raise ValueError(f"{group}.{key} is no keyword of {group}={name}: it has {', '.join(keys) or 'none'}")
    return Part(group, name, DictConfig(OmegaConf.merge(node, OmegaConf.from_dotlist(list(changes)))))


def class_node(group: str, path: str, given: Sequence[str]) -> DictConfig:
    """Return the node of a class without a YAML: its defaults, and the vocabulary and schedule if it takes them."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` has it: a module beside the user is found
    try:
        target = get_class(path)
    except (ImportError, ValueError) as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"{group}={path} cannot be imported ({' '.join(str(cause).split())}):"
            " give package.module.Class, importable from this folder"
        ) from error
    if not issubclass(target, SEAMS[group]):
        raise ValueError(f"{group}={path} is no {SEAMS[group].__name__}: derive the class from {_full(SEAMS[group])}")
    node: dict[str, Any] = {"_target_": path}
    filled_in = FILLED_IN_BACKBONE if group == "backbone" else FILLED_IN
    for name, parameter in inspect.signature(target).parameters.items():
        if name in filled_in and name not in given:
            node[name] = filled_in[name]
        elif parameter.default is not inspect.Parameter.empty:
            node[name] = parameter.default
        elif name in given:
            node[name] = None
        elif parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise ValueError(f"{group}={path} needs {name}: give {group}.{name}=VALUE")
    return OmegaConf.create(node, flags={"allow_objects": True})


def _full(target: type) -> str:
    return f"{target.__module__}.{target.__qualname__}"


def toy_config(nodes: dict[str, Any], vocab_size: int = VOCAB_SIZE, mask_id: int | None = MASK_ID) -> DictConfig:
    """Return a configuration that holds the nodes and what their interpolations name, at a size to enumerate."""
    vocab = {"size": vocab_size, "mask_id": mask_id, "bos_id": None, "eos_id": None}
    return OmegaConf.create({"vocab": vocab, **nodes}, flags={"allow_objects": True})


def build(part: Part, *others: Part, vocab_size: int = VOCAB_SIZE, mask_id: int | None = MASK_ID) -> Any:
    """Build a part as a run does, beside the parts that it may name.

    Raises:
        ValueError: what the part itself says about its arguments.
    """
    toy = toy_config({one.group: one.node for one in (*others, part)}, vocab_size, mask_id)
    if (toy[part.group].get("block_size") or 0) >= samplers.LENGTH:  # else the laws would see a single block
        toy[part.group].block_size = samplers.LENGTH - 1
    return instantiated(part, toy)


def instantiated(part: Part, toy: DictConfig) -> Any:
    """Instantiate the part in its configuration."""
    try:
        return instantiate(toy[part.group])
    except InstantiationException as error:
        cause = error.__cause__ or error
        # What the part itself says is the message that users see.
        raise ValueError(str(cause) if isinstance(cause, ValueError) else f"{part.label}: {cause}") from error


# Which laws


def plan(parts: dict[str, list[Part]], named: set[str]) -> Iterator[Job]:
    """Yield the laws of every combination that involves a part that was named (all, when none was).

    Raises:
        ValueError: a part that was named fits nothing that it may be paired with.
    """
    made = [
        job
        for jobs in (schedule_jobs, process_jobs, objective_jobs, t_sampler_jobs, sampler_jobs, backbone_jobs)
        for job in jobs(parts, named)
    ]
    for group in named:
        for part in parts[group]:
            if not any(part.label in {job.subject, *job.rests_on} for job in made):
                raise ValueError(
                    f"{part.label} fits none of the parts that it was named with: name it alone, or with parts that"
                    " it holds for"
                )
    yield from made


def schedule_jobs(parts: dict[str, list[Part]], named: set[str]) -> Iterator[Job]:
    """Yield schedules alone."""
    for part in parts["schedule"]:
        yield from _job(named, schedules.LAWS, [part], build(part))


def process_jobs(parts: dict[str, list[Part]], named: set[str]) -> Iterator[Job]:
    """Yield processes under every schedule, with a mask token and, where they allow that, without."""
    for part, others in _with_schedules(parts, "process"):
        process = build(part, *others)
        if not process.independent:  # what noise does to a token depends on the others: only the mean over t is known
            yield from _job(named, processes.MARGINAL_LAWS, [part, *others], process)
            continue
        laws = [*processes.LAWS, *([samplers.law_reverse_chain] if process.noises else [])]
        yield from _job(named, laws, [part, *others], process)
        try:
            maskless = build(part, *others, mask_id=None)
        except ValueError:  # needs a mask token, and says so
            continue
        yield from _job(named, processes.LAWS, [part, *others], maskless)


def objective_jobs(parts: dict[str, list[Part]], named: set[str]) -> Iterator[Job]:
    """Yield objectives under every process and schedule that they hold for."""
    for part, (noise, others) in product(parts["objective"], _with_schedules(parts, "process")):
        objective, process = build(part, noise, *others), build(noise, *others)
        try:
            objective.check(process)
        except ValueError:  # does not hold for this noise, and says so
            continue
        laws = [*objectives.LAWS, ends.law_ends] if process.noises else objectives.EXACT_LAWS
        if process.noises and not (objective.continuous and process.independent):
            laws = objectives.POINTWISE_LAWS  # the others enumerate noise token by token and integrate over t
        yield from _job(named, laws, [part, noise, *others], objective, process)


def t_sampler_jobs(parts: dict[str, list[Part]], named: set[str]) -> Iterator[Job]:
    """Yield time samplers, under every schedule if they take one."""
    for part, others in _with_schedules(parts, "t_sampler"):
        yield from _job(named, t_samplers.LAWS, [part, *others], build(part, *others))


def sampler_jobs(parts: dict[str, list[Part]], named: set[str]) -> Iterator[Job]:
    """Yield samplers with every process that they are for, under one schedule unless schedules were named."""
    few = parts["schedule"] if "schedule" in named else parts["schedule"][:1]
    linear = [part for part in parts["schedule"] if part.name == "linear"]
    fewer = {**parts, "schedule": few if "schedule" in named else linear or few}
    for part in parts["sampler"]:
        for noise, others in _with_schedules(fewer, "process"):
            sampler, process = build(part, noise, *others), build(noise, *others)
            if not trained_for(sampler, process):
                continue
            wide = build(noise, *others, vocab_size=samplers.WIDE)
            yield from _job(named, samplers.LAWS, [part, noise, *others], sampler, process)
            yield from _job(named, [samplers.law_tail], [part, noise, *others], sampler, wide)
        yield from _job(named, [samplers.law_times], [part], build(part))


def backbone_jobs(parts: dict[str, list[Part]], named: set[str]) -> Iterator[Job]:
    """Yield backbones with random weights, bidirectional and causal; large ones only when named."""
    if named and "backbone" not in named:
        return
    for part in parts["backbone"]:
        if not named and num_params(part) > LARGE:
            continue
        for causal in (False, True):
            network = backbones.with_random_weights(build_backbone(part, causal))
            yield from _job(named, backbones.LAWS, [part], network, setting=f"causal={str(causal).lower()}")


def build_backbone(part: Part, causal: bool) -> Backbone:
    """Build a backbone for a vocabulary with mask and BOS."""
    toy = toy_config({"causal": causal, "backbone": part.node}, NUM_WORDS)
    toy.vocab.bos_id = BOS_ID
    backbone: Backbone = instantiated(part, toy)
    return backbone


def num_params(part: Part) -> int:
    """Return the size of a backbone, without making its weights."""
    with torch.device("meta"):
        return build_backbone(part, causal=False).num_params


def trained_for(sampler: Sampler, process: ForwardProcess) -> bool:
    """Return whether some objective of conf/ holds for the process and trains what the sampler expects."""
    for name in part_names("objective"):
        objective = build(find_part("objective", name))
        try:
            objective.check(process)
            check_agreement(objective.predicts, sampler, process)
        except ValueError:  # one of the two refuses
            continue
        if (objective.block_size is None) == (sampler.block_size is None):  # blocks of any size can be trained
            return True
    return False


def _with_schedules(parts: dict[str, list[Part]], group: str) -> Iterator[tuple[Part, list[Part]]]:
    for part in parts[group]:
        for schedule in parts["schedule"] if part.takes_schedule else [None]:
            yield part, [] if schedule is None else [schedule]


def _job(
    named: set[str], laws: Sequence[Law], involved: list[Part], *arguments: Any, setting: str = ""
) -> Iterator[Job]:
    """Yield the laws of involved[0] if a named part is involved.

    It stands under its name, those of named others, and the setting that it is tested in, if there are several.
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


# Running and telling


def run(jobs: Sequence[Job]) -> tuple[list[Finding], Counter[str]]:
    """Run the laws behind a progress bar (on a terminal).

    Returns:
        findings: of the laws that were run.
        left_out: for each part that breaks a law of its own, how many laws of other parts were not run for its sake.
    """
    console, findings, broken, left_out = Console(stderr=True), [], set[str](), Counter[str]()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("laws", total=len(jobs))
        for job in jobs:
            progress.update(task, description=job.part)
            if job.rests_on & broken:
                left_out.update(job.rests_on & broken)
            else:
                found = [_paired(finding, job.paired) for finding in job.run()]
                if not all(finding.passed for finding in found):
                    broken.add(job.subject)
                findings += found
            progress.advance(task)
    return findings, left_out


def _paired(finding: Finding, paired: str) -> Finding:
    told = f"{finding.meaning} (with {paired})" if paired and finding.meaning else finding.meaning
    return replace(finding, meaning=told)


def worst_of(findings: Sequence[Finding]) -> list[Finding]:
    """Return one finding for each law and part: the one nearest to failing, or failing most."""
    worst: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        key = (finding.part, finding.law)
        if key not in worst or (finding.passed, -finding.severity) < (worst[key].passed, -worst[key].severity):
            worst[key] = finding
    order = {part: number for number, part in enumerate(dict.fromkeys(part for part, _ in worst))}
    return sorted(worst.values(), key=lambda finding: order[finding.part])


def table(findings: Sequence[Finding]) -> Table:
    """Return the table of law, part, measured value, tolerance and verdict."""
    out = Table("part", "law", title="laws")
    for name in ("measured", "tolerance"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("", no_wrap=True)
    before = ""
    for finding in findings:
        if before not in ("", finding.part):
            out.add_section()
        verdict = "[green]pass[/green]" if finding.passed else "[red]FAIL[/red]"
        sign = "≥" if finding.at_least else "≤"
        shown = "" if finding.part == before else finding.part
        out.add_row(shown, finding.law, f"{finding.measured:.2g}", f"{sign} {finding.tolerance:.2g}", verdict)
        before = finding.part
    return out


def failures(findings: Sequence[Finding]) -> list[str]:
    """Return what each failure means, one line each; laws that fail for one reason share it."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if not finding.passed:
            reasons.setdefault((finding.part, finding.meaning), []).append(finding.law)
    return [f"FAIL {part}: {'; '.join(laws)}: {meaning}" for (part, meaning), laws in reasons.items()]


def as_json(findings: Sequence[Finding], seconds: float) -> str:
    """Return the findings as JSON; a number that is not finite is null."""
    rows = []
    for finding in findings:
        row = asdict(finding)
        row["measured"] = finding.measured if math.isfinite(finding.measured) else None
        rows.append(row)
    passed = all(finding.passed for finding in findings)
    return json.dumps({"passed": passed, "seconds": round(seconds, 1), "findings": rows}, indent=2) + "\n"
