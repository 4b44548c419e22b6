"""The arithmetic and the words of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dlmkit.config import (
    LONGEST_NAME,
    check_overrides,
    compose,
    explain,
    group_name,
    micro_size,
    nearest,
    num_steps,
    run_name,
)
from dlmkit.nested import flatten


def test_steps_reach_the_budget():
    assert num_steps(1000, 4, 10) == 25
    assert num_steps(1001, 4, 10) == 26
    assert num_steps(1, 16, 128) == 1


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 8), st.integers(1, 4))
def test_micro_batches_fill_the_batch(micro, accumulate, devices, nodes):
    assert micro_size(micro * accumulate * devices * nodes, accumulate, devices, nodes) == micro


def test_folder_names():
    assert run_name("") == "default"
    assert run_name("family=ar,seed=1") == "family=ar,seed=1"
    assert run_name("data.source.files=a/b.txt") == "data.source.files=a-b.txt"
    assert group_name(None) == group_name("null") == "single"
    assert group_name("quickstart") == "quickstart"


@given(st.text(max_size=400), st.text(max_size=400))
def test_long_folder_names_are_cut_and_stay_apart(one, other):
    for name in (one, other):
        assert len(run_name(name).encode()) <= LONGEST_NAME
    if one.replace("/", "-") != other.replace("/", "-"):
        assert run_name(one) != run_name(other) or not one or not other


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1, 2]}) == {"a.b": 1, "a.c": {}, "d": [1, 2]}


def test_nearest():
    assert nearest("cosin", ["linear", "cosine"]) == " (nearest: cosine)"
    assert nearest("xyz", ["linear", "cosine"]) == ""


GOOD = [
    ["optimizer.lr=1"],  # a whole number where a fraction may stand
    ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=null"],
    ["+optimizer.amsgrad=true", "+trainer.max_time=1:0"],
    ["backbone=dit_tiny", "backbone.num_layers=2"],
    ["callbacks=[samples,ema]", "callbacks.ema.decay=0.5", "~callbacks.samples"],
    ["family=adapted", "init_from=somewhere"],
    ["experiment=quickstart", "budget.of.ar=5"],
    ["data=text", "data.source.files=[a.txt,b.txt]"],
    ["optimizer.betas=[0.9,0.99]", "lr_schedule=constant"],
]


@pytest.mark.parametrize("overrides", GOOD, ids=" ".join)
def test_what_can_be_meant_passes(overrides):
    check_overrides(compose(overrides, Path("run")), overrides)


def test_the_outermost_words_are_read():
    """A part's own error comes through Hydra's; an error that was put in better words comes in those."""
    outer = ValueError("outer\n in two lines")
    outer.__cause__ = ValueError("inner")
    assert explain(outer) == "outer in two lines"
    wrapped = InstantiationException("Error in call to target 'x': full_key: schedule")
    wrapped.__cause__ = ValueError("power 0 is not positive")
    assert explain(wrapped) == "power 0 is not positive"
    wrapped.__cause__ = TypeError("X() takes no arguments")
    assert explain(wrapped) == "schedule does not fit its part: X() takes no arguments"


def test_the_kits_own_errors_are_not_explained_away():
    for error in (RuntimeError("bug"), TypeError("bug"), AssertionError("bug"), KeyError("bug")):
        assert explain(error) is None


def test_notes_say_which_run():
    error = ValueError("seed -1")
    error.add_note("run seed=-1")
    assert explain(error) == "seed -1; run seed=-1"


def test_resolved_configuration_stands_alone():
    config = compose(["family=uniform", "seed=3"], Path("some where"))
    assert config.run_dir == "some where"
    again = OmegaConf.create(OmegaConf.to_yaml(config, resolve=True))
    assert OmegaConf.to_container(again) == OmegaConf.to_container(config, resolve=True)
