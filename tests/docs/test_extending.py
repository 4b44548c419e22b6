"""docs/extending.md does what it says: its files are written, its commands run, its parts put to the laws."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from laws.enumeration import TablePredictor
from omegaconf import OmegaConf

from dlmkit import cli, config
from dlmkit.commands import train
from laws import parts
from laws.test_objectives import a_batch, law_exact, source
from laws.test_processes import LAWS as PROCESS_LAWS
from laws.test_samplers import test_given_tokens_never_change_and_no_mask_is_left as law_given
from laws.test_samplers import test_samples_have_the_datas_distribution as law_samples
from laws.test_schedules import all_laws as all_schedule_laws

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES: dict[str, str] = dict(re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
TYPED = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
CHECKS = [command for command in TYPED if command.startswith("dlmkit check ")]
COMMANDS = [command for command in TYPED if command not in CHECKS]

PARTS = {"schedule": "odds", "process": "mixture", "objective": "tempered", "backbone": "encoder", "sampler": "churn"}
FOLDERS = {group: "processes" if group == "process" else f"{group}s" for group in PARTS}

QUICK: dict[str, dict[str, Any]] = {
    "train.yaml": {"validation.num_times": 2, "trainer.accelerator": "cpu"},
    "lr_schedule/cosine.yaml": {"warmup_steps": 1},
    "data/markov.yaml": {"num_val_sequences": 16},
    "callbacks/samples.yaml": {"samples.num_steps": 4, "samples.num_samples": 1},
    "callbacks/throughput.yaml": {"throughput.window_size": 2},
}
"""What makes the page's runs quick: changes to the copied configuration; the commands stay as they are typed."""


@pytest.fixture
def extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a copy of conf/ and the page's files, which `dlmkit` sees as if they were its own."""
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
    for group, folder in FOLDERS.items():
        package = import_module(f"dlmkit.{folder}")
        # In front, so that the page's files are the ones that are tested, even where somebody has tried them out.
        monkeypatch.setattr(package, "__path__", [str(tmp_path / "src" / "dlmkit" / folder), *package.__path__])
        monkeypatch.delitem(sys.modules, f"dlmkit.{folder}.{PARTS[group]}", raising=False)
        monkeypatch.delattr(package, PARTS[group], raising=False)
    for module in (config, config.composition, train):
        monkeypatch.setattr(module, "conf_dir", lambda: tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for group, folder in FOLDERS.items():  # or the next test would get this one's module
        if sys.modules.pop(f"dlmkit.{folder}.{PARTS[group]}", None) is not None:
            delattr(sys.modules[f"dlmkit.{folder}"], PARTS[group])
    sys.modules.pop("my_parts", None)


def build(extended: Path, group: str, **changes: Any) -> Any:
    return parts.build(group, PARTS[group], conf=extended / "conf", **changes)


def test_every_part_has_its_two_files():
    for group, name in PARTS.items():
        assert f"src/dlmkit/{FOLDERS[group]}/{name}.py" in FILES
        assert f"conf/{group}/{name}.yaml" in FILES
    assert len(FILES) == 2 * len(PARTS) + 2  # and the example outside the repository
    assert PAGE.count("```python") + PAGE.count("```yaml") == len(FILES), "a block that no test runs"


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=lambda arguments: arguments[0])
def test_examples_pass_lint(extended, arguments):
    names = [name for name in FILES if name.endswith(".py")]
    settings = ["--config", str(ROOT / "pyproject.toml"), "--config", f"src = ['{ROOT / 'src'}']"]
    ruff = [sys.executable, "-m", "ruff", *arguments, *settings, *names]
    done = subprocess.run(ruff, cwd=extended, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# The laws


def test_schedule_keeps_the_laws(extended):
    schedule = build(extended, "schedule")
    all_schedule_laws(schedule)
    t = torch.tensor([0.3], dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) / (1 - schedule.alpha(t)), (1 - t) / t / 2.0)
    assert "odds" in parts.names("schedule", extended / "conf")
    for process, objective in (("absorbing", "masked"), ("uniform", "uniform")):
        law_exact(
            parts.objective(objective),
            parts.build("process", process, "odds", conf=extended / "conf"),
            source(),
        )


def test_derivative_may_be_left_out(extended):
    """Also in validation, which Lightning runs in inference mode."""
    schedule = build(extended, "schedule")
    t = torch.linspace(0.01, 0.99, 5, dtype=torch.float64)
    closed = schedule.derivative(t)
    del type(schedule).derivative
    torch.testing.assert_close(schedule.derivative(t), closed)
    with torch.inference_mode():
        torch.testing.assert_close(schedule.derivative(t), closed)


def test_process_keeps_the_laws(extended):
    process = build(extended, "process")
    for law in PROCESS_LAWS:
        law(process)
    law_exact(parts.objective("elbo"), process, source())
    with pytest.raises(ValueError, match="mask_id is null"):
        build(extended, "process", mask_id=None)


def test_objective_keeps_the_laws(extended):
    noise = parts.process("absorbing")
    law_exact(build(extended, "objective"), noise, source())
    with pytest.raises(ValueError, match="objective=tempered"):
        build(extended, "objective").check(parts.process("uniform"))
    noised, logits = a_batch(noise)
    half, masked = build(extended, "objective", power=0.5), parts.objective("masked")
    mine, bound = (objective(TablePredictor(logits), noised, noise) for objective in (half, masked))
    assert torch.equal(mine.nll, bound.nll)
    torch.testing.assert_close(mine.loss, bound.loss * noised.t.sqrt()[:, None])  # w = 1 / t


@pytest.mark.parametrize("process", ["absorbing", "uniform"])
def test_sampler_keeps_the_laws(extended, monkeypatch, process):
    monkeypatch.setattr(parts, "sampler", lambda name, **changes: build(extended, "sampler", **changes))
    law_given("churn", process)
    law_samples("churn", process)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shift", [False, True])
@torch.no_grad()
def test_backbone_keeps_what_the_page_says(extended, causal, shift):
    settings = OmegaConf.to_container(OmegaConf.load(extended / "conf" / "backbone" / "encoder.yaml"), resolve=False)
    vocabulary = {"size": 11, "mask_id": 10, "bos_id": 9, "eos_id": 9}
    node = OmegaConf.create({"vocab": vocabulary, "causal": causal, "backbone": settings})
    torch.manual_seed(0)
    if causal and not shift:
        with pytest.raises(Exception, match="would copy it"):
            instantiate(node.backbone, shift=shift)
        return
    backbone = instantiate(node.backbone, shift=shift, max_length=8, num_layers=2)
    x, t = torch.randint(9, (2, 8)), torch.rand(2, dtype=torch.float64)
    everywhere = torch.ones_like(x, dtype=torch.bool)

    def logits(tokens: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
        return backbone(tokens, t, segments).logits(everywhere).unflatten(0, x.shape)

    def moves(position: int, segments: torch.Tensor | None = None) -> list[int]:
        """Which predictions move when the token at `position` does."""
        other = x.clone()
        other[:, position] = (x[:, position] + 1) % 9
        change = (logits(other, segments) - logits(x, segments))[..., :9].abs().amax(-1)
        return (change > 1e-6).any(0).nonzero()[:, 0].tolist()

    for training in (True, False):  # torch takes another path for inference
        backbone.train(training)
        plain = logits(x)
        assert plain.shape == (2, 8, 11)
        assert (plain[..., 10] == float("-inf")).all()
        assert moves(3) == (list(range(4, 8)) if causal else list(range(8)))
        documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]).expand(2, -1)
        # Shifted, the token that ends a document is what the next one is begun from.
        beginning = [4] if shift else []
        expected = [] if causal else [0, 1, 2, 3]
        assert set(moves(2, documents)) <= {0, 1, 2, 3}
        assert set(moves(3, documents)) <= {*expected, *beginning, *(range(4, 8) if shift else [])}
        assert set(moves(7, documents)) <= {4, 5, 6, 7}
    assert backbone.max_length == 8
    with pytest.raises(ValueError, match="at most 8"):
        backbone(torch.randint(9, (1, 9)), t[:1])
    assert backbone.flops_per_token(8, 1.0) > backbone.flops_per_token(8, 0.5) > 0


# The commands


@pytest.mark.parametrize("command", CHECKS)
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
    assert chosen & {*PARTS.values(), "late"}, "the command does not use the new part"
