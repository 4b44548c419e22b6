"""docs/extending.md: its files are written, its commands run, its parts checked by the laws."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from dlmkit import cli, config
from dlmkit.commands import train
from dlmkit.commands.check.candidates import candidate
from dlmkit.compatibility import Parts, problems
from dlmkit.generation import generate
from dlmkit.laws import backbones, corruption, objectives, pairing, processes, samplers, schedules, t_samplers
from dlmkit.laws.findings import Law
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.toys import a_batch
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.parts import Part
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.uniform import Uniform
from dlmkit.randomness import generator_for
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.schedules.linear import Linear
from dlmkit.types import Canvas, NetworkInput
from laws.asserting import asserting
from networks import randomised

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES: dict[str, str] = dict(re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
TYPED = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
CHECKS = [command for command in TYPED if command.startswith("dlmkit check ")]
COMMANDS = [command for command in TYPED if command not in CHECKS]

PARTS = {
    "schedule": ["odds"],
    "process": ["mixture"],
    "corruption": ["repeated"],
    "objective": ["tempered", "preconditioned"],
    "backbone": ["encoder"],
    "sampler": ["churn", "prompt_cached", "preconditioned"],
    "t_sampler": ["halves"],
}
FOLDERS = {group: {"process": "processes", "corruption": "corruption"}.get(group, f"{group}s") for group in PARTS}
MODULES = [
    *((folder, name) for group, folder in FOLDERS.items() for name in PARTS[group]),
    ("parameterizations", "preconditioned"),
]
OUTSIDE = {"my_parts": "schedule/late", "my_objective": "objective/uncertainty"}

QUICK: dict[str, dict[str, Any]] = {
    "train.yaml": {"validation.num_times": 2, "trainer.accelerator": "cpu"},
    "lr_schedule/cosine.yaml": {"warmup_steps": 1},
    "data/markov.yaml": {"num_val_sequences": 16},
    "callbacks/samples.yaml": {"samples.num_steps": 4, "samples.num_samples": 1},
    "callbacks/throughput.yaml": {"throughput.window_size": 2},
}
"""What makes the page's runs quick: changes to the copied configuration; the commands are run as they are typed."""


@pytest.fixture
def extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a copy of conf/ and the page's files, which `dlmkit` finds as if they were its own."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name, changes in QUICK.items():
        quick = OmegaConf.load(tmp_path / "conf" / name)
        for key, value in changes.items():
            OmegaConf.update(quick, key, value)
        OmegaConf.save(quick, tmp_path / "conf" / name)
    for name, body in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")
    for folder, name in MODULES:
        package = import_module(f"dlmkit.{folder}")
        # In front, so that the page's files are the ones that are tested, even where a user has tried them out.
        own = str(tmp_path / "src" / "dlmkit" / folder)
        if own not in package.__path__:
            monkeypatch.setattr(package, "__path__", [own, *package.__path__])
        monkeypatch.delitem(sys.modules, f"dlmkit.{folder}.{name}", raising=False)
        monkeypatch.delattr(package, name, raising=False)
    for module in (config, config.composition, config.values, train):
        monkeypatch.setattr(module, "conf_dir", lambda: tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for folder, name in MODULES:  # or the next test would get this one's module
        if sys.modules.pop(f"dlmkit.{folder}.{name}", None) is not None:
            delattr(sys.modules[f"dlmkit.{folder}"], name)
    for name in OUTSIDE:
        sys.modules.pop(name, None)


def build(
    extended: Path, group: str, name: str, schedule: str = "linear", toy: pairing.Toy = pairing.TOY, **changes: Any
) -> Any:
    """Build a part of the page, or one of conf/, with a small vocabulary."""

    def found(group: str, name: str, **changes: Any) -> pairing.Candidate:
        node = OmegaConf.merge(OmegaConf.load(extended / "conf" / group / f"{name}.yaml"), changes)
        assert isinstance(node, DictConfig)
        return candidate(group, name, node)

    return found(group, name, **changes).build(found("schedule", schedule), toy=toy)


def check(laws: Sequence[Law], *parts: Part) -> None:
    """Assert the laws that apply, of which there must be some."""
    applying = [law for law in laws if law.why_not(*parts) is None]
    assert applying
    for law in applying:
        asserting(law)(*parts)


def test_every_part_has_its_two_files():
    for group, names in PARTS.items():
        for name in names:
            assert f"src/dlmkit/{FOLDERS[group]}/{name}.py" in FILES
            assert f"conf/{group}/{name}.yaml" in FILES
    for module, yaml in OUTSIDE.items():
        assert f"{module}.py" in FILES
        assert f"my_conf/{yaml}.yaml" in FILES
    assert len(FILES) == 2 * sum(map(len, PARTS.values())) + 2 * len(OUTSIDE) + 1  # and the parameterization
    assert PAGE.count("```python") + PAGE.count("```yaml") == len(FILES), "a block that no test runs"


def test_every_part_is_trained_by_a_command():
    for group, names in PARTS.items():
        for name in names:
            assert [command for command in COMMANDS if re.search(rf" {group}=(\w+,)*{name}\b", command)], name


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=lambda arguments: arguments[0])
def test_examples_pass_lint(extended, arguments):
    names = [name for name in FILES if name.endswith(".py")]
    settings = ["--config", str(ROOT / "pyproject.toml"), "--config", f"src = ['{ROOT / 'src'}', 'src']"]
    ruff = [sys.executable, "-m", "ruff", *arguments, *settings, *names]
    done = subprocess.run(ruff, cwd=extended, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# The laws


def test_schedule_keeps_the_laws(extended):
    schedule = build(extended, "schedule", "odds")
    check(schedules.LAWS, schedule)
    t = torch.tensor([0.3], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) / (1 - schedule.alpha(t)), (1 - t) / t / 2.0)
    for process, objective in (("absorbing", "masked"), ("uniform", "uniform")):
        noise = build(extended, "process", process, "odds")
        check([objectives.law_exact], build(extended, "objective", objective), noise)


def test_derivative_may_be_left_out(extended):
    """Also in validation, which Lightning runs in inference mode."""
    schedule = build(extended, "schedule", "odds")
    t = torch.linspace(0.01, 0.99, 5, dtype=torch.float64)
    closed = schedule.derivative(t)
    del type(schedule).derivative
    torch.testing.assert_close(schedule.derivative(t), closed)
    with torch.inference_mode():
        torch.testing.assert_close(schedule.derivative(t), closed)


def test_process_keeps_the_laws(extended):
    process = build(extended, "process", "mixture")
    check(processes.LAWS, process)
    check([objectives.law_exact], build(extended, "objective", "elbo"), process)
    with pytest.raises(ValueError, match="mask_id is null"):
        build(extended, "process", "mixture", toy=pairing.MASKLESS)


@pytest.mark.parametrize("process", ["absorbing", "uniform", "mixture"])
def test_corruption_keeps_the_laws(extended, process):
    for num_copies in (1, 3):
        repeated = build(extended, "corruption", "repeated", num_copies=num_copies)
        check(corruption.LAWS, repeated, build(extended, "process", process))
    with pytest.raises(ValueError, match="num_copies 0"):
        build(extended, "corruption", "repeated", num_copies=0)


def test_objective_keeps_the_laws(extended):
    noise = Absorbing(Linear(), 4, 1)
    check(objectives.LAWS, build(extended, "objective", "tempered"), noise)
    (problem,) = problems(Parts(process=Uniform(Linear(), 4, 1), objective=build(extended, "objective", "tempered")))
    assert problem.startswith("objective=tempered with process=uniform")
    noised, logits = a_batch(noise)
    half = build(extended, "objective", "tempered", power=0.5)
    mine, bound = (objective(TablePrediction(logits), noised, noise) for objective in (half, MaskedElbo()))
    assert torch.equal(mine.nll, bound.nll)
    torch.testing.assert_close(mine.loss, bound.loss * noised.t.sqrt()[:, None])  # w = 1 / t


@pytest.mark.parametrize("process", ["absorbing", "uniform", "mixture"])
def test_parameterization_keeps_the_laws(extended, process):
    noise, objective = build(extended, "process", process), build(extended, "objective", "preconditioned")
    check(objectives.LAWS, objective, noise)
    sampler = build(extended, "sampler", "preconditioned")
    check(samplers.LAWS, sampler, noise)
    assert not list(problems(Parts(process=noise, objective=objective, sampler=sampler)))
    (problem,) = problems(Parts(process=noise, objective=objective, sampler=build(extended, "sampler", "ancestral")))
    assert "sampler=ancestral expects a network that predicts 'x0_loo'" in problem


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
@pytest.mark.parametrize("name", ["churn", "prompt_cached"])
def test_sampler_keeps_the_laws(extended, name, process):
    sampler = build(extended, "sampler", name)
    check([samplers.law_times], sampler)
    check(samplers.LAWS, sampler, build(extended, "process", process))
    check([samplers.law_tail], sampler, build(extended, "process", process, toy=pairing.WIDE))
    assert sampler.with_settings(temperature=0.5).temperature == 0.5
    with pytest.raises(ValueError, match="temperature -1"):
        sampler.with_settings(temperature=-1)


def test_a_prompt_handed_over_once_gives_the_texts_of_ancestral_sampling(extended):
    network, process = encoder(extended), Absorbing(Linear(), 13, 1)
    tokens = torch.randint(2, 13, (4, 9), generator=generator_for("cpu", "prompt"))
    fixed = torch.arange(9) < torch.tensor([3, 5, 4, 9])[:, None]
    calls = []
    prefill = network.prefill
    network.prefill = lambda *arguments: (calls.append(arguments[0].shape[1]), prefill(*arguments))[1]  # type: ignore[method-assign]
    cached, plain = (
        generate(network, process, sampler, Canvas(tokens, fixed), 6, 1).tokens
        for sampler in (build(extended, "sampler", "prompt_cached"), Ancestral())
    )
    assert torch.equal(cached, plain)
    assert calls == [3]


def test_time_sampler_keeps_the_laws(extended):
    halves = build(extended, "t_sampler", "halves")
    check(t_samplers.LAWS, halves)
    fitted = t_samplers.fit_to_uneven_loss(halves)
    assert fitted.upper_share == pytest.approx(0.1)  # the loss falls steeply with t
    assert halves.upper_share == 0.5


def encoder(extended: Path, causal: bool = False, **changes: Any) -> Any:
    torch.manual_seed(0)
    toy = pairing.Toy(vocab_size=13, mask_id=1, bos_id=2, causal=causal)
    sizes = {"max_length": 16, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    return randomised(build(extended, "backbone", "encoder", toy=toy, **sizes, **changes))


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("shift", [False, True], ids=["plain", "shifted"])
def test_backbone_keeps_the_laws(extended, causal, shift):
    if causal and not shift:
        with pytest.raises(ValueError, match="would copy it"):
            encoder(extended, causal, shift=False)
        return
    network = encoder(extended, causal, shift=shift)
    for training in (False, True):  # torch takes another path for inference
        check(backbones.LAWS, network.train(training))
    assert network.max_length == 16
    with pytest.raises(ValueError, match="at most 16"):
        network(NetworkInput(torch.zeros(1, 17, dtype=torch.int64), torch.ones(1)))
    assert network.flops_per_token(8, 1.0) > network.flops_per_token(8, 0.5) > 0


def test_objective_with_weights_keeps_the_laws(extended, monkeypatch):
    monkeypatch.syspath_prepend(extended)
    objective = import_module("my_objective").Uncertainty()
    check(objectives.LAWS, objective, Absorbing(Linear(), 4, 1))
    assert set(objective.state_dict()) == {"log_loss", "num_masked"}
    noised, logits = a_batch(Absorbing(Linear(), 4, 1))
    objective(TablePrediction(logits), noised, Absorbing(Linear(), 4, 1)).loss.sum().backward()
    assert (objective.log_loss.grad != 0).all()


# The commands


BROAD = ("dlmkit check schedule=odds", "dlmkit check schedule=my_parts.Late", "dlmkit check corruption=repeated")
WIDE = ("dlmkit check t_sampler=halves", "dlmkit check backbone=encoder")
"""Checks that pair a part with all others, and others that take long; beginnings of commands."""


def is_broad(command: str) -> bool:
    """Whether it checks every pair, and no others are named."""
    return command.startswith(WIDE) or (command.startswith(BROAD) and "objective=" not in command)


@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=[pytest.mark.long] if is_broad(one) else []) for one in CHECKS]
)
def test_checks_pass(extended, monkeypatch, command):
    monkeypatch.syspath_prepend(extended)
    assert cli.main(shlex.split(command)[1:]) == 0


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.split()[:4]))
def test_commands_run(extended, monkeypatch, command):
    variables, program, arguments = command.partition("dlmkit ")
    assert program
    for assignment in shlex.split(variables):
        name, _, value = assignment.partition("=")
        assert name == "PYTHONPATH"
        monkeypatch.syspath_prepend(extended / value)
    assert " budget.tokens=51200" in command
    quick = arguments.replace(" budget.tokens=51200", " budget.tokens=1024")  # two steps
    assert cli.main(shlex.split(quick)) == 0
    records = [json.loads(path.read_text()) for path in sorted(extended.glob("runs/**/summary.json"))]
    assert len(records) == (2 if command.endswith(" -m") else 1)
    assert all((record["status"], record["steps"]) == ("finished", 2) for record in records)
    chosen = {record[group] for record in records for group in PARTS}
    own = {name for names in PARTS.values() for name in names} | {yaml.partition("/")[2] for yaml in OUTSIDE.values()}
    assert chosen & own, "the command does not use the new part"
