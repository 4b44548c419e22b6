"""`dlmkit check`: right parts pass, wrong ones are refused with what is wrong, nonsense gets one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dlmkit import cli
from dlmkit.commands.check.candidates import part_names, select
from dlmkit.commands.check.show import worst_of
from dlmkit.laws.findings import Finding, at_least, at_most, holds
from dlmkit.laws.pairing import INTERFACES, Job, plan

MINE = """
from dataclasses import dataclass, replace

from dlmkit.backbones.dit import DiT
from dlmkit.corruption.independent import Independent
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.processes.uniform import Uniform
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.schedules.base import Schedule
from dlmkit.t_samplers.iid import IID
from dlmkit.types import TimeDraw, TokenLoss


class Power(Schedule):
    def __init__(self, power):
        self.power = power

    def alpha(self, t):
        return 1 - t**self.power


class WrongSlope(Power):
    def __init__(self, power=3.0):
        super().__init__(power)

    def derivative(self, t):
        return -(t ** (self.power - 1))


class Breaks(Schedule):
    def alpha(self, t):
        return t[:, :, :, 0]


class NoWeight(MaskedElbo):
    def __call__(self, prediction, noised, process):
        result = super().__call__(prediction, noised, process)
        return TokenLoss(result.loss, result.nll * noised.t[:, None])


class Early(IID):
    def __init__(self, eps=1e-3):
        super().__init__(eps)

    def sample(self, num, generator):
        t, weight = super().sample(num, generator)
        return TimeDraw(0.9 * t, weight)


class Noise(Uniform):
    pass


class KeyedByRow(Independent):
    def draw(self, process, batch, draw, indices, *key):
        return super().draw(process, batch, draw, range(len(batch)), *key)


@dataclass(frozen=True)
class Greedy(Ancestral):
    temperature: float = 0.0
    keeps_distribution = True

    keeps_distribution = True  # which it does not


class AttendsAcross(DiT):
    def __init__(self, vocab_size, mask_id, bos_id, causal, shift, width=16):
        super().__init__(vocab_size, mask_id, 16, width, 1, 2, 8, causal=causal, shift=shift, bos_id=bos_id)

    def forward(self, inputs):
        return super().forward(replace(inputs, segments=None))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of one's own, from which the command is called."""
    (tmp_path / "my_checked_parts.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["check", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def jobs(*arguments: str) -> list[Job]:
    selection = select(arguments)
    return plan(selection.candidates, selection.named)


def test_shipped_parts_pass(capsys, tmp_path):
    file = tmp_path / "findings.json"
    others = ["corruption=independent", "objective=masked", "t_sampler=importance", "sampler=ancestral"]
    code, out, err = run(capsys, "schedule=linear,cosine", "process=absorbing", *others, "--json", str(file))
    assert code == 0
    assert "FAIL" not in out
    assert err == ""  # no progress bar where there is no terminal
    record = json.loads(file.read_text())
    assert record["passed"]
    parts = {row["part"] for row in record["findings"]}
    assert {"schedule=linear", "process=absorbing, schedule=cosine", "sampler=ancestral"} <= parts
    keys = {"law", "part", "measured", "tolerance", "passed", "meaning", "at_least", "applies"}
    assert set(record["findings"][0]) == keys
    applied = [row for row in record["findings"] if row["applies"]]
    assert f"{len(applied)} of {len(applied)} laws hold" in out


def test_every_shipped_part_is_planned():
    large = {"dit_small", "dit_medium"}  # only when named
    planned = {job.subject for job in jobs()}
    for group in INTERFACES:
        assert planned >= {f"{group}={name}" for name in part_names(group) if name not in large}


@pytest.mark.parametrize(
    ("argument", "law"),
    [
        ("objective=block", "loss of a block = of the block alone"),
        ("objective=discrete", "nll = T times the divergence of a step"),
        ("corruption=fixed_count", "noise_rate = share of noisy tokens"),
        ("corruption=complementary", "each copy follows the marginal"),
    ],
)
def test_parts_with_laws_of_their_own_are_held_to_them(capsys, argument, law):
    code, out, _ = run(capsys, argument)
    assert code == 0, out
    assert law in out


@pytest.mark.long
def test_a_law_that_does_not_apply_is_recorded_with_the_reason(capsys, tmp_path):
    file = tmp_path / "findings.json"
    code, out, _ = run(capsys, "objective=discrete", "process=absorbing", "schedule=linear", "--json", str(file))
    assert code == 0
    assert "exact" not in out
    (exact,) = (row for row in json.loads(file.read_text())["findings"] if row["law"] == "exact")
    assert not exact["applies"]
    assert exact["measured"] is None
    assert exact["meaning"].startswith("its bound is in discrete time")


@pytest.mark.parametrize("block_size", [1, 2, 16])
def test_blocks_of_any_size_are_sampled(block_size):
    planned = jobs("sampler=blockwise", f"sampler.block_size={block_size}")
    assert len(planned) > 1  # law_times needs no process


def test_a_class_by_its_import_path(mine, capsys):
    assert run(capsys, "schedule=my_checked_parts.Power", "schedule.power=2.5", "process=none")[0] == 0
    assert run(capsys, "process=my_checked_parts.Noise", "schedule=linear", "sampler=autoregressive")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "law", "meaning"),
    [
        (["schedule=my_checked_parts.WrongSlope"], "derivative = autograd", "alpha's slope there is"),
        (["schedule=my_checked_parts.Breaks"], "runs from data to noise", "the part raised IndexError"),
        pytest.param(
            ["objective=my_checked_parts.NoWeight", "schedule=linear"],
            "exact predictor: bound = -log p(x)",
            "nll is p_mask = ",
            marks=pytest.mark.long,
        ),
        (["t_sampler=my_checked_parts.Early"], "weight of each tenth of the support", "the length of"),
        (["corruption=my_checked_parts.KeyedByRow"], "noise belongs to the sequence", "the rest of its batch"),
        (["backbone=my_checked_parts.AttendsAcross", "backbone.width=8"], "documents do not leak", "another document"),
        (["sampler=my_checked_parts.Greedy", "process=absorbing"], "samples have the data's distribution", "frequency"),
    ],
    ids=lambda value: value[0].partition("my_checked_parts.")[2] if isinstance(value, list) else "",
)
def test_a_wrong_class_fails_and_says_why(mine, capsys, arguments, law, meaning):
    code, out, _ = run(capsys, *arguments)
    assert code == 1
    failures = [line for line in out.splitlines() if line.startswith("FAIL ")]
    assert any(law in line and meaning in line for line in failures), out
    assert all(arguments[0] in line for line in failures)  # and nothing else is blamed


def test_shipped_backbones_pass(capsys):
    code, out, _ = run(capsys, "backbone=dit_tiny,hf,llama")
    assert code == 0, out
    assert "backbone=hf, causal=true" in out


def test_what_rests_on_a_broken_part_is_left_out(mine, capsys):
    _, out, _ = run(capsys, "schedule=my_checked_parts.WrongSlope", "process=absorbing")
    assert "laws of other parts that rest on schedule=my_checked_parts.WrongSlope were not run" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["schedule=linea"], "schedule=linea is unknown: choose one of"),
        (["shedule=linear"], "'shedule' is no part that has laws"),
        (["linear"], "'linear' is not part=name"),
        (["schedule="], "'schedule=' is not part=name"),
        (["schedule.power=3"], "schedule.power=3 without a part"),
        (["schedule=linear", "schedule.power=3"], "schedule.power is no keyword of schedule=linear"),
        (["schedule=polynomial", "schedule.power=-1"], "power -1 is outside [0.1, 10]"),
        (["schedule=my_checked_parts.Power"], "needs power: give schedule.power=VALUE"),
        (["schedule=my_checked_parts.NoSuch"], "cannot be imported"),
        (["schedule=no_such_package.Mine"], "cannot be imported"),
        (["schedule=..Mine"], "cannot be imported"),
        (["process=my_checked_parts.Power"], "is no ForwardProcess"),
        (["schedule=my_checked_parts.replace"], "is no Schedule"),
        (["process=absorbing_fixed_count"], "process=absorbing_fixed_count is now corruption=fixed_count"),
        (["objective=masked", "process=uniform"], "fits none of the parts"),
    ],
)
def test_nonsense_gets_one_line(mine, capsys, caplog, arguments, line):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("dlmkit check: ")
    assert err.count("\n") == 1
    assert caplog.records == []
    assert line in err


# Findings


def test_a_finding_keeps_its_limit():
    assert at_most("law", 1.0, 1.0, "too large").passed
    assert at_least("law", 1.0, 1.0, "too small").passed
    assert holds("law", True, "untrue") == Finding("law", "", 0.0, 0.0, True, "")
    assert at_most("law", 2.0, 1.0, "too large").meaning == "too large"
    assert at_least("law", 0.5, 1.0, lambda: "too small").meaning == "too small"
    assert not at_most("law", float("nan"), 1.0, "no number").passed
    assert not at_least("law", float("nan"), 1.0, "no number").passed


def test_the_worst_finding_stands_for_its_law():
    fine, near, failed = (at_most("law", value, 1.0, "too large") for value in (0.1, 0.9, 2.0))
    assert worst_of([fine, near]) == [near]
    assert worst_of([near, failed, fine]) == [failed]
    likely, unlikely = (at_least("law", value, 1e-6, "too small") for value in (0.5, 1e-5))
    assert worst_of([likely, unlikely]) == [unlikely]


@pytest.mark.parametrize("place", [".", "no/such/folder/findings.json"])
def test_where_findings_cannot_go_is_said_before_they_are_made(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--json", place]) == 2
    assert f"--json {place} is a folder, or cannot be written" in capsys.readouterr().err
