"""Which parts fit together: every refusal with its message, and one answer for building runs, check and tests."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from omegaconf import OmegaConf

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.build import build_module, build_parts
from dlmkit.compatibility import Parts, check, fit, problems
from dlmkit.config import compose
from dlmkit.laws import pairing
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.discrete import DiscreteTimeElbo
from dlmkit.parameterizations.x0 import X0
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.blockwise import Blockwise
from laws import parts
from laws.parts import MASK_ID, VOCAB_SIZE


def built(**named: Any) -> Parts:
    """Parts from names in conf/; what is no name is taken as it is."""
    return Parts(**{key: parts.build(key, value) if isinstance(value, str) else value for key, value in named.items()})


class Plain(DiT):
    """A network without a pass of block diffusion."""

    name = "plain"
    supports_context = False


def network(kind: type[Backbone] = DiT, mask_id: int | None = MASK_ID, **settings: Any) -> Backbone:
    return kind(VOCAB_SIZE, mask_id, 16, 8, 1, 2, 8, **settings)  # type: ignore[call-arg]


# Every problem, with its message

ONE_BLOCK = Blockwise(4, Ancestral(1.0, None, 1.0))
PROBLEMS = {
    "noise for the baseline": (
        {"objective": "autoregressive", "process": "absorbing"},
        "objective=autoregressive with process=absorbing: the baseline reads clean tokens; set process=none (or"
        " family=ar)",
    ),
    "diffusion without noise": (
        {"objective": "masked", "process": "none"},
        "objective=masked with process=none: there is nothing to denoise; set objective=autoregressive",
    ),
    "closed form of other noise": (
        {"objective": "masked", "process": "uniform"},
        "objective=masked with process=uniform: the closed form holds for absorbing noise only; set process=absorbing,"
        " or objective=elbo",
    ),
    "scores under hybrid noise": (
        {"objective": "score_entropy", "process": "hybrid"},
        "objective=score_entropy with process=hybrid: scores are for absorbing and for uniform noise; set"
        " process=absorbing or process=uniform, or another objective",
    ),
    "corruption of other noise": (
        {"corruption": "complementary", "process": "uniform"},
        "corruption=complementary with process=uniform: it draws absorbing noise only; set process=absorbing, or"
        " corruption=independent",
    ),
    "tokens not noised independently": (
        {"objective": "elbo", "corruption": "fixed_count"},
        "objective=elbo with corruption=fixed_count: at one t tokens are not noised independently, which this bound"
        " needs; set objective=masked, or corruption=independent",
    ),
    "copies between the steps": (
        {"objective": "discrete", "corruption": "complementary"},
        "objective=discrete with corruption=complementary: the times of its copies are not among the steps; set"
        " corruption=independent",
    ),
    "copies between the steps of a block": (
        {"objective": BlockElbo(2, DiscreteTimeElbo(8)), "corruption": "complementary"},
        "objective=block with corruption=complementary: the times of its copies are not among the steps; set"
        " corruption=independent",
    ),
    "sampler of scores": (
        {"objective": "masked", "sampler": "score_analytic"},
        "sampler=score_analytic expects a network that predicts 'score', objective=masked trains one that predicts"
        " 'x0_loo': set sampler=ancestral",
    ),
    "objective of scores": (
        {"objective": "score_entropy", "sampler": "ancestral", "process": "absorbing"},
        "sampler=ancestral expects a network that predicts 'x0_loo', objective=score_entropy trains one that predicts"
        " 'score': set sampler=score_analytic",
    ),
    "sampler of diffusion for the baseline": (
        {"objective": "autoregressive", "sampler": "ancestral"},
        "sampler=ancestral expects a network that predicts 'x0_loo', objective=autoregressive trains one that predicts"
        " 'next': set sampler=autoregressive",
    ),
    "blocks of the sampler alone": (
        {"objective": "masked", "sampler": ONE_BLOCK},
        "sampler=blockwise generates in blocks of 4 tokens, objective=masked trains in blocks of all: set"
        " sampler=ancestral",
    ),
    "blocks of the objective alone": (
        {"objective": "block", "sampler": "ancestral"},
        "sampler=ancestral generates in blocks of all tokens, objective=block trains in blocks of 2: set"
        " sampler=blockwise sampler.block_size=2",
    ),
    "blocks of two sizes": (
        {"objective": "block", "sampler": ONE_BLOCK},
        "sampler=blockwise generates in blocks of 4 tokens, objective=block trains in blocks of 2: set"
        " sampler=blockwise sampler.block_size=2",
    ),
    "left to right under noise": (
        {"sampler": "autoregressive", "process": "absorbing"},
        "sampler=autoregressive with process=absorbing: set sampler=ancestral, or process=none",
    ),
    "steps without noise": (
        {"sampler": "ancestral", "process": "none"},
        "sampler=ancestral with process=none: set sampler=autoregressive, or process=absorbing",
    ),
    "a length that blocks do not fill": (
        {"objective": "block", "length": 5},
        "length 5 is no multiple of objective.block_size 2: choose a block_size that divides it, or a length such as 4",
    ),
    "a network without context": (
        {"objective": "block", "backbone": network(Plain)},
        "backbone=plain reads no clean context, which objective=block needs: take backbone=hf or dit_tiny, or set"
        " supports_context where `forward` reads NetworkInput.context (see Backbone.trunk_input)",
    ),
    "two masks": (
        {"process": "absorbing", "backbone": network(mask_id=2)},
        "process.mask_id 1 is not backbone.mask_id 2: leave both to the tokenizer",
    ),
    "a causal network for diffusion": (
        {"objective": "masked", "backbone": network(causal=True, shift=True, bos_id=0)},
        "causal=true does not fit objective=masked: an autoregressive objective needs causal=true, a diffusion"
        " objective causal=false; family=NAME sets both",
    ),
    "a bidirectional network for the baseline": (
        {"objective": "autoregressive", "backbone": network()},
        "causal=false does not fit objective=autoregressive: an autoregressive objective needs causal=true, a diffusion"
        " objective causal=false; family=NAME sets both",
    ),
    "a negative weight": (
        {"objective": "masked", "backbone": network(shift=True, bos_id=0), "ar_weight": -0.5},
        "ar_weight -0.5 is not a number of at least 0: use 0 for no auxiliary loss",
    ),
    "a weight that is no number": (
        {"objective": "masked", "backbone": network(shift=True, bos_id=0), "ar_weight": float("nan")},
        "ar_weight nan is not a number of at least 0: use 0 for no auxiliary loss",
    ),
    "an auxiliary loss without a shift": (
        {"objective": "masked", "backbone": network(), "ar_weight": 0.1},
        "ar_weight 0.1 above 0 needs a diffusion objective on a shifted backbone (backbone.shift=true), whose outputs"
        " predict the next token",
    ),
    "an auxiliary loss beside the baseline": (
        {
            "objective": "autoregressive",
            "backbone": network(causal=True, shift=True, bos_id=0),
            "ar_weight": 0.1,
        },
        "ar_weight 0.1 above 0 needs a diffusion objective on a shifted backbone (backbone.shift=true), whose outputs"
        " predict the next token",
    ),
}


@pytest.mark.parametrize(("named", "message"), PROBLEMS.values(), ids=PROBLEMS)
def test_problem(named, message):
    assert list(problems(built(**named))) == [message]
    assert not fit(built(**named))
    with pytest.raises(ValueError) as error:
        check(built(**named))
    assert str(error.value) == message


@pytest.mark.parametrize(
    "named",
    [
        {},
        {"objective": "masked", "process": "absorbing", "corruption": "fixed_count", "sampler": "ancestral"},
        {"objective": "autoregressive", "process": "none", "sampler": "autoregressive", "corruption": "independent"},
        {"objective": "block", "process": "absorbing", "sampler": "blockwise", "length": 6, "backbone": network()},
        {"objective": "masked", "backbone": network(shift=True, bos_id=0), "ar_weight": 0.1},
        {"process": "uniform", "backbone": network(mask_id=None)},  # a network that does not know of the mask
        {"objective": "block", "length": 1},
    ],
)
def test_what_fits_has_no_problem(named):
    assert list(problems(built(**named))) == []
    check(built(**named))


def test_the_first_of_several_problems_is_raised():
    several = built(objective="masked", process="uniform", sampler="score_analytic", corruption="fixed_count")
    assert len(list(problems(several))) == 3
    with pytest.raises(ValueError, match=r"^objective=masked with process=uniform"):
        check(several)


# What holds for what

PROCESSES = {
    "masked": {"absorbing"},
    "block": {"absorbing"},
    "uniform": {"uniform"},
    "hybrid": {"hybrid"},
    "score_entropy": {"absorbing", "uniform"},
    "autoregressive": {"none"},
    "elbo": {"absorbing", "uniform", "hybrid"},
    "discrete": {"absorbing", "uniform", "hybrid"},
}
CORRUPTIONS = {
    "masked": {"independent", "complementary", "fixed_count"},
    "block": {"independent", "complementary", "fixed_count"},
    "score_entropy": {"independent", "complementary"},
    "elbo": {"independent", "complementary"},
    "discrete": {"independent"},
}


@pytest.mark.parametrize("objective", parts.names("objective"))
def test_objectives_hold_for_their_noise_alone(objective):
    holds = {name for name in parts.names("process") if fit(built(objective=objective, process=name))}
    assert holds == PROCESSES[objective]


@pytest.mark.parametrize("objective", CORRUPTIONS)
def test_objectives_hold_for_their_corruptions_alone(objective):
    """Each under absorbing noise."""
    named = [{"objective": objective, "process": "absorbing", "corruption": name} for name in parts.names("corruption")]
    assert {one["corruption"] for one in named if fit(built(**one))} == CORRUPTIONS[objective]


def test_a_class_decides_by_its_process_and_not_by_its_name():
    """Hybrid noise without uniform noise is a mask process, but its closed form is another one."""
    assert not fit(Parts(process=parts.process("hybrid", p_uniform=0.0), objective=parts.objective("masked")))
    assert fit(Parts(process=parts.process("hybrid", p_uniform=0.0), objective=parts.objective("hybrid")))


@pytest.mark.parametrize("process", ["absorbing", "uniform", "hybrid", "none"])
def test_a_plain_posterior_fits_the_ancestral_sampler_under_mask_noise_only(process):
    objective = parts.objective("autoregressive" if process == "none" else "elbo")
    objective.parameterization = X0()
    made = Parts(process=parts.process(process), objective=objective, sampler=parts.sampler("ancestral"))
    assert fit(made) == (process == "absorbing")


# One answer everywhere


def test_a_run_with_parts_that_do_not_fit_is_not_built(tmp_path, monkeypatch):
    """The network's part of it: it is built after the others."""
    monkeypatch.setattr("dlmkit.backbones.dit.DiT", Plain)
    config = compose(["family=block", "backbone=dit_tiny"], tmp_path)
    config.vocab = {"size": 16, "mask_id": 15, "bos_id": 14, "eos_id": 14}
    with pytest.raises(ValueError, match="backbone=plain reads no clean context, which objective=block needs"):
        build_module(config, None)


def run_config(objective: str, process: str, corruption: str, sampler: str) -> Any:
    """What `build_parts` reads of a run's configuration."""
    nodes = {"objective": objective, "process": process, "corruption": corruption, "sampler": sampler}
    content = {group: OmegaConf.load(parts.CONF / group / f"{name}.yaml") for group, name in nodes.items()}
    content["schedule"] = OmegaConf.load(parts.CONF / "schedule" / "linear.yaml")
    content["vocab"] = {"size": VOCAB_SIZE, "mask_id": MASK_ID, "bos_id": None, "eos_id": None}
    return OmegaConf.create({**content, "length": 32})


@pytest.mark.long
def test_building_and_pairing_agree_on_every_combination_of_conf():
    groups = ("objective", "process", "corruption", "sampler")
    accepted = set()
    for names in product(*(parts.names(group) for group in groups)):
        made = dict(zip(groups, names, strict=True))
        try:
            build_parts(run_config(**made))
        except ValueError:
            continue
        accepted.add(names)
    assert len(accepted) > 20
    assert {names[:2] for names in accepted} == {case[:2] for case in parts.objective_cases(parts.LINEAR)}
    assert {(names[2], names[1]) for names in accepted} == {case[:2] for case in parts.corruption_cases(parts.LINEAR)}
    assert {(names[3], names[1]) for names in accepted} == set(parts.sampler_cases())


def test_pairing_leaves_out_what_does_not_fit():
    """A part of which nothing fits is in no case."""
    alone = {**parts.LINEAR, "process": [parts.candidate("process", "none")]}
    assert parts.named(pairing.objective_cases(alone)) == [("autoregressive", "none", "linear")]
    assert parts.named(pairing.corruption_cases(alone)) == [("independent", "none", "linear")]
    assert parts.named(pairing.sampler_cases(alone)) == [("autoregressive", "none", "linear")]
