"""Laws that do not apply give the reason, and `dlmkit check` counts the others alone."""

from __future__ import annotations

import json

import pytest

from dlmkit import cli
from dlmkit.commands.check.show import not_applicable, worst_of
from dlmkit.laws import (
    backbones,
    boundary_terms,
    corruption,
    discrete_time,
    objectives,
    processes,
    samplers,
    schedules,
    t_samplers,
)
from dlmkit.laws.findings import Law, at_most, findings_of, holds, law
from laws import parts

KINDS = (schedules, processes, corruption, objectives, discrete_time, boundary_terms, t_samplers, samplers, backbones)
LAWS = {one.name: one for kind in KINDS for one in vars(kind).values() if isinstance(one, Law)}


def built(*named: tuple[str, str]) -> list:
    return [parts.build(group, name) for group, name in named]


NONE, ABSORBING, UNIFORM = (("process", name) for name in ("none", "absorbing", "uniform"))
AUTOREGRESSIVE, MASKED, DISCRETE = (("objective", name) for name in ("autoregressive", "masked", "discrete"))
REASONS = [
    ("law_prior", [NONE], "it has no noise"),
    ("law_reverse_chain", [NONE], "it has no noise"),
    ("law_copies_follow_the_marginal", [("corruption", "fixed_count"), ABSORBING], "not independent"),
    ("law_noise_rate", [("corruption", "independent"), ABSORBING], "it has the process's own noise rate"),
    ("law_exact", [AUTOREGRESSIVE, NONE], "there is no noise"),
    ("law_exact", [DISCRETE, ABSORBING], "its bound is in discrete time"),
    ("law_boundary_terms", [DISCRETE, ABSORBING], "its bound is in discrete time"),
    ("law_steps", [MASKED, ABSORBING], "its bound is an integral over t, without steps"),
    ("law_weight", [AUTOREGRESSIVE, NONE], "there is no noise"),
    ("law_next_token", [MASKED, ABSORBING], "its nll is a bound"),
    ("law_blocks", [MASKED, ABSORBING], "it has no blocks"),
    ("law_learning_moves_no_mean", [("t_sampler", "stratified")], "it learns nothing from the losses"),
    ("law_state_is_saved", [("t_sampler", "iid")], "it learns nothing from the losses"),
    ("law_distribution", [("sampler", "self_correcting"), UNIFORM], "it seeks likely text"),
    ("law_infilling", [("sampler", "ancestral"), UNIFORM], "does not differ from a noisy one under this noise"),
]


@pytest.mark.parametrize(
    ("name", "named", "reason"), REASONS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_law_that_does_not_apply_gives_one_finding_with_the_reason(name, named, reason):
    (finding,) = findings_of(LAWS[name], "a part", *built(*named))
    assert not finding.applies
    assert finding.passed  # nothing is violated
    assert (finding.law, finding.part) == (LAWS[name].title, "a part")
    assert reason in finding.meaning
    assert finding.measured != finding.measured
    assert LAWS[name].why_not(*built(*named)) == finding.meaning


def test_one_token_blocks_have_no_infilling():
    sampler = parts.sampler("blockwise", block_size=1)
    assert "before the block that is given" in LAWS["law_infilling"].why_not(sampler, parts.process("absorbing"))


def test_a_causal_network_is_not_annealed():
    causal = parts.build("backbone", "dit_tiny", causal=True, shift=True, bos_id=0)
    assert LAWS["law_annealing_keeps_the_past"].why_not(causal) == "it is causal, and attention does not open"
    assert LAWS["law_block_masking"].why_not(causal) == "it is causal, and block diffusion is not"
    maskless = parts.build("backbone", "dit_tiny", mask_id=None)
    assert LAWS["law_mask_is_never_predicted"].why_not(maskless) == "it has no mask token"


def test_every_law_that_may_not_apply_has_a_reason_tested_here():
    conditional = {name for name, one in LAWS.items() if one.unless is not None}
    tested = {name for name, _, _ in REASONS}
    tested |= {"law_annealing_keeps_the_past", "law_block_masking", "law_mask_is_never_predicted"}
    same = {"law_larger", "law_closed_form", "law_truth_is_stationary"}  # as law_exact
    same |= {"law_float32", "law_nothing_to_score"}  # as law_weight
    assert conditional == tested | same


def test_a_law_applies_by_default():
    @law()
    def law_of_nothing(part):
        yield holds("nothing", True, "")

    assert law_of_nothing.why_not("whatever") is None
    assert law_of_nothing.title == "of nothing"
    (finding,) = findings_of(law_of_nothing, "a part", "whatever")
    assert finding.applies
    assert finding.passed


def test_a_reason_that_raises_is_a_violation():
    """An error of the part is a finding, also where it is met before the law itself."""

    @law(unless=lambda part: part.no_such_attribute)
    def law_of_nothing(part):
        yield holds("nothing", True, "")

    (finding,) = findings_of(law_of_nothing, "a part", "whatever")
    assert finding.applies
    assert not finding.passed
    assert "the part raised AttributeError" in finding.meaning


def test_the_table_leaves_out_what_does_not_apply():
    applies = at_most("one law", 0.5, 1.0, "too large")
    (other,) = findings_of(LAWS["law_blocks"], "", *built(MASKED, ABSORBING))
    assert worst_of([applies, other]) == [applies]
    assert not_applicable([applies, other, other]) == [other]


def test_check_counts_the_laws_that_apply(tmp_path, capsys):
    file = tmp_path / "findings.json"
    assert cli.main(["check", "objective=autoregressive", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["findings"]
    applying = [row for row in rows if row["applies"]]
    reasons = {row["law"]: row["meaning"] for row in rows if not row["applies"]}
    out = capsys.readouterr().out
    assert f"{len(applying)} of {len(applying)} laws hold, 1 part" in out
    assert reasons["exact"] == "there is no noise (with process=none)"
    assert reasons["blocks"] == "it has no blocks (with process=none)"
    assert "next token" not in reasons
    assert all(row["measured"] is None for row in rows if not row["applies"])
    assert "there is no noise" not in out
