"""docs/extending.md does what it says: each file that it shows is written, each command run, each part put to the laws."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from laws import parts
from laws.enumeration import TablePredictor
from laws.test_objectives import a_batch, law_exact, source
from laws.test_processes import LAWS as PROCESS_LAWS
from laws.test_samplers import test_given_tokens_never_change_and_no_mask_is_left as law_given
from laws.test_samplers import test_samples_have_the_datas_distribution as law_samples
from laws.test_schedules import all_laws as all_schedule_laws
from omegaconf import OmegaConf

import dlmkit
from dlmkit import cli, config
from dlmkit.commands import train

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {path: body for path, body in re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)}
COMMANDS = re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE)
IN_PROCESS = [command for command in COMMANDS if command.startswith("dlmkit ")]
ELSEWHERE = [command for command in COMMANDS if not command.startswith("dlmkit ")]

PARTS = {"schedule": "odds", "process": "mixture", "objective": "tempered", "backbone": "encoder", "sampler": "churn"}
QUICK = [
    "budget.tokens=1024",  # two steps
    "validation.num_times=2",
    "lr_schedule.warmup_steps=1",
    "backbone.num_layers=1",
    "data.num_val_blocks=16",
    "callbacks=[samples,checkpoint]",
    "callbacks.samples.num_steps=4",
    "callbacks.samples.num_samples=1",
    "trainer.accelerator=cpu",
]


@pytest.fixture
def extended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's files, where `dlmkit` and conf/ reach over the ones of the checkout."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    for name, body in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert not path.exists(), f"docs/extending.md would overwrite {name}: choose another example"
        path.write_text(body, encoding="utf-8")
    before = set(sys.modules)
    for group in PARTS:
        package = import_module(f"dlmkit.{group}s")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "src" / "dlmkit" / f"{group}s")])
    for module in (config, train, parts):
        if hasattr(module, "conf_dir"):
            monkeypatch.setattr(module, "conf_dir", lambda: tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for group, name in PARTS.items():
        module = f"dlmkit.{group}s.{name}"
        if module not in before:
            sys.modules.pop(module, None)


def test_every_part_has_its_two_files():
    for group, name in PARTS.items():
        assert f"src/dlmkit/{group}s/{name}.py" in FILES
        assert f"conf/{group}/{name}.yaml" in FILES
    assert len(FILES) == 2 * len(PARTS) + 2  # and the example outside the repository
    assert PAGE.count("```python") + PAGE.count("```yaml") == len(FILES), "a block that no test runs"


@pytest.mark.parametrize("arguments", [["check"], ["format", "--check"]], ids=lambda arguments: arguments[0])
def test_examples_pass_lint(extended, arguments):
    names = [name for name in FILES if name.endswith(".py")]
    ruff = [sys.executable, "-m", "ruff", *arguments, "--config", str(ROOT / "pyproject.toml"), *names]
    done = subprocess.run(ruff, cwd=extended, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def build(extended: Path, group: str, **changes):
    return parts.build(group, PARTS[group], conf=extended / "conf", **changes)


def test_schedule_keeps_the_laws(extended):
    schedule = build(extended, "schedule")
    all_schedule_laws(schedule)
    t = torch.tensor([0.3], dtype=torch.float64)
    odds = schedule.alpha(t) / (1 - schedule.alpha(t))
    torch.testing.assert_close(odds, (1 - t) / t / 2.0)
    assert "odds" in parts.names("schedule", extended / "conf")


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
    settings = OmegaConf.load(extended / "conf" / "backbone" / "encoder.yaml")
    vocabulary = {"size": 11, "mask_id": 10, "bos_id": 9, "eos_id": 9}
    node = OmegaConf.create({"vocab": vocabulary, "causal": causal, "backbone": {**settings, "shift": shift}})
    if causal and not shift:
        with pytest.raises(Exception, match="would copy it"):
            instantiate(node.backbone)
        return
    backbone = instantiate(node.backbone, max_length=8, num_layers=2)
    x, t = torch.randint(9, (2, 8)), torch.rand(2, dtype=torch.float64)
    everywhere = torch.ones_like(x, dtype=torch.bool)

    def logits(tokens, segments=None):
        return backbone(tokens, t, segments).logits(everywhere).unflatten(0, x.shape)

    for mode in (True, False):  # torch has another path for inference
        backbone.train(mode)
        plain = logits(x)
        assert plain.shape == (2, 8, 11)
        assert (plain[..., 10] == float("-inf")).all()
        other = x.clone()
        other[:, -1] = (x[:, -1] + 1) % 9
        moved = (logits(other) - plain)[..., :10].abs().amax(-1) > 1e-6
        assert bool(moved[:, 0].any()) == (not causal)
        if causal:
            assert not moved.any()  # nobody sees the last token
        segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]).expand(2, -1)
        moved = (logits(other, segments) - logits(x, segments))[..., :10].abs().amax(-1) > 1e-6
        assert not moved[:, :4].any()
    with pytest.raises(ValueError, match="max_length 8"):
        backbone(torch.randint(9, (1, 9)), t[:1])
    assert backbone.flops_per_token(8, 1.0) > backbone.flops_per_token(8, 0.5) > 0


def summaries(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("runs/**/summary.json"))]


@pytest.mark.parametrize("command", IN_PROCESS)
def test_commands_run(extended, command):
    assert cli.main([*shlex.split(command)[1:], *QUICK]) == 0
    records = summaries(extended)
    assert len(records) == (2 if " -m" in command else 1)
    for record in records:
        assert (record["status"], record["steps"]) == ("finished", 2)
    chosen = {record[group] for record in records for group in PARTS}
    assert chosen & set(PARTS.values()), f"{command} does not use the new part"


@pytest.mark.parametrize("command", ELSEWHERE)
def test_parts_outside_the_repository(extended, command):
    variable, _, rest = command.partition(" ")
    name, _, value = variable.partition("=")
    environment = {**os.environ, name: value, "OMP_NUM_THREADS": "1"}
    dlmkit_command = [sys.executable, "-m", "dlmkit.cli", *shlex.split(rest)[1:], *QUICK]
    source_folder = str(Path(dlmkit.__file__).parents[1])
    environment[name] = os.pathsep.join([value, source_folder])
    done = subprocess.run(
        dlmkit_command, cwd=extended, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert summaries(extended)[0]["schedule"] == "late"
