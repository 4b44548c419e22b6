"""Values that no run can have: refused before anything is built, with the key, the rule and a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from omegaconf import DictConfig, OmegaConf

from dlmkit.config import choices_of, compose, conf_dir
from dlmkit.config.declared import TABLE, declared
from dlmkit.config.values import hints_at, problems
from dlmkit.processes.absorbing import Absorbing
from dlmkit.ranges import Range, checked, misfit, range_of
from dlmkit.schedules.polynomial import Polynomial
from toy_runs import MODEL, SMALL, TOY, Outcome, dlmkit, text_corpus, text_data, train

# name: (overrides, what the line must hold)
CASES = {
    "schedule that is constant": (["schedule=polynomial", "schedule.power=1e9"], ["schedule.power", "[0.1, 10]"]),
    "share of signal": (["schedule=log_linear", "schedule.eps=1"], ["schedule.eps 1 is outside [0, 0.5]", "try 1e-3"]),
    "infinite learning rate": (["optimizer.lr=inf"], ["optimizer.lr inf is outside [0, 100]: try 2e-3"]),
    "negative learning rate": (["optimizer.lr=-1"], ["optimizer.lr -1 is outside [0, 100]"]),
    "no learning rate": (["optimizer.lr=null"], ["optimizer.lr null is not a number in [0, 100]"]),
    "infinite decay": (["optimizer.weight_decay=inf"], ["optimizer.weight_decay inf is outside"]),
    "one beta": (["optimizer.betas=[0.9]"], ["optimizer.betas [0.9] has 1 entries: give 2"]),
    "beta that is no number": (["optimizer.betas=[0.9,nan]"], ["has an entry that is outside [0, 1)"]),
    "weight that is no number": (["ar_weight=nan"], ["ar_weight nan is outside", "use 0"]),
    "negative layers": (["backbone.config.n_layer=-1"], ["backbone.config.n_layer -1 is outside [1, 1024]"]),
    "no heads": (["backbone.config.n_head=0"], ["backbone.config.n_head 0 is outside [1, 1024]"]),
    "heads that do not divide": (
        ["backbone.config.n_embd=17"],
        ["n_embd 17 is no multiple of n_head 2"],
    ),
    "setting of no model": (
        ["+backbone.config.activation_function=foo"],
        ["backbone.config: transformers makes no gpt2 of it", "'foo'"],
    ),
    "larger than the machine": (
        ["backbone.config.n_embd=65536", "backbone.config.n_layer=1024"],
        ["parameters", "GiB of memory", "lower its width"],
    ),
    "micro-batches that do not fill": (["batch.micro_size=7"], ["batch.micro_size 7", "not batch.size 4", "leave"]),
    "temperature that is no number": (["sampler.temperature=nan"], ["sampler.temperature nan is outside [0, 1000]"]),
    "name that is a number": (["callbacks.checkpoint.filename=inf"], ["callbacks.checkpoint.filename inf", "text"]),
    "name outside of the folder": (["callbacks.checkpoint.filename=../up"], ["'../up' leaves the folder", "'..'"]),
    "folder that is a list": (["run_dir=[1,2]"], ["run_dir [1, 2] is not text"]),
    "clipping that is no number": (["trainer.gradient_clip_val=nan"], ["trainer.gradient_clip_val nan is outside"]),
    "clip that is no number": (
        ["objective.weighting=clipped", "objective.max_weight=nan"],
        ["objective.max_weight nan is outside (0, 1e6]"],
    ),
    "many bins": (["t_sampler=learned", "t_sampler.num_bins=100000000"], ["t_sampler.num_bins", "[1, 65536]"]),
    "smallest time": (["t_sampler.eps=null"], ["t_sampler.eps null is not a number in [0, 0.5]: it is the smallest t"]),
    "many workers": (["batch.num_workers=999999999999"], ["batch.num_workers", "0 is usually fast enough"]),
    "no seed": (["seed=null"], ["seed null is not a whole number in [0, 4294967295]"]),
    "large seed": (["seed=999999999999"], ["seed 999999999999 is outside [0, 4294967295]: give"]),
    "setting of another sampler": (
        ["family=block_4", "sampler=ancestral"],
        ["sampler.block_size is no setting of sampler=ancestral", "set sampler=blockwise"],
    ),
    "added setting": (
        ["+schedule.foo=1"],
        ["schedule.foo is no setting of schedule=linear (it has none)"],
    ),
    "added setting of the trainer": (["+trainer.acelerator=cpu"], ["trainer.acelerator", "(nearest: accelerator)"]),
    "setting of the trainer": (["+trainer.max_epochs=abc"], ["trainer.max_epochs 'abc' is not a whole number or null"]),
    "no callbacks, and one set": (["callbacks=[]"], ["samples is not among the callbacks", "callbacks=[samples]"]),
    "callback that is a number": (["callbacks.samples=3"], ["callbacks.samples 3 has no _target_", "~"]),
    "logger that is a number": (["logger.tensorboard=3"], ["logger.tensorboard 3 has no _target_"]),
    "part that is a number": (["process.schedule=3"], ["process.schedule 3 has no _target_"]),
    "class that is not there": (
        ["schedule._target_=os.nothing"],
        ["'os.nothing' cannot be imported"],
    ),
    "samples longer than the model": (["callbacks.samples.length=99"], ["callbacks.samples.length 99", "at most 15"]),
    "no section": (["batch=null"], ["batch null is not a section", "batch.size=VALUE"]),
    "start that is a list": (["init_from=[1]"], ["init_from [1] is not text or a section or null"]),
    "policy": (["non_finite.policy=hope"], ["non_finite.policy 'hope' is unknown: choose one of stop, skip"]),
    "vocabulary of another size": (["process.vocab_size=17", "process.mask_id=3"], ["process.vocab_size 17"]),
    "vocabulary without the mask": (["process.vocab_size=1"], ["process.mask_id 16 is outside the vocabulary of 1"]),
    "sampler that is none": (["callbacks.samples.sampler={_target_: os.getcwd}"], ["is no Sampler"]),
    "part that is none": (["sampler._target_=os.getcwd"], ["sampler."]),
    "list of numbers for a list of names": (["logger=[1,2]"], ["logger=[1,2] names no choice"]),
    "text with a long value": ([f"seed={'9' * 200}"], ["seed 999", "...", "is outside"]),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str) -> None:
    overrides, expected = CASES[case]
    outcome = train("runs/x", *overrides)
    assert outcome.code == 2, outcome.err
    line = outcome.err.splitlines()[-1]
    assert line.startswith("dlmkit train: ")
    assert len(outcome.err.splitlines()) == 1 or line.startswith("dlmkit train: callbacks.samples.length")
    for text in expected:
        assert text in line


CACHES = {
    "a device": ("data.cache_dir=/dev/null", "/dev/null"),
    "a file": ("data.cache_dir=occupied", "occupied"),
    "below a file": ("data.cache_dir=occupied/cache", "occupied"),
}


@pytest.mark.parametrize("case", CACHES)
def test_a_cache_that_is_no_folder(case: str) -> None:
    override, named = CACHES[case]
    Path("occupied").touch()
    outcome = train_on_text(override)
    assert outcome.code == 2, outcome.err
    assert named in outcome.line
    assert "set data.cache_dir or DLMKIT_CACHE to a folder that can be written" in outcome.line


def test_the_cache_of_the_environment_that_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("occupied").touch()
    for name in ("occupied", "/proc/none/cache"):
        monkeypatch.setenv("DLMKIT_CACHE", name)
        outcome = train_on_text()
        assert outcome.code == 2, outcome.err
        assert name in outcome.line
        assert "DLMKIT_CACHE" in outcome.line


def train_on_text(*overrides: str) -> Outcome:
    data = text_data(text_corpus(Path("t.txt")))
    return dlmkit("train", *MODEL, *SMALL, *data, "hydra.run.dir=runs/x", "budget.tokens=32", *overrides)


def test_no_callbacks_is_a_run() -> None:
    small = [one for one in TOY if not one.startswith("callbacks.")]
    outcome = dlmkit("train", *small, "hydra.run.dir=runs/x", "budget.tokens=32", "callbacks=[]")
    assert outcome.code == 0, outcome.err


def leaves(node: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (key, value, annotation) of everything that is written in a configuration."""
    hints = hints_at(node, prefix)
    for name in map(str, node):
        key = f"{prefix}.{name}" if prefix else name
        if OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name):
            continue
        if isinstance(node[name], DictConfig):
            yield from leaves(node[name], key)
        else:
            yield key, node[name], declared(key, hints.get(name, Any))


CHOICES = [
    (group.name, choice)
    for group in sorted(conf_dir().iterdir())
    if group.is_dir()
    for choice in choices_of(group.name)
]


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=list(map("=".join, CHOICES)))
def test_every_number_of_conf_has_a_type_and_a_range(group: str, choice: str) -> None:
    config = compose([f"{group}={choice}"], Path("run"))
    only_a_user_knows = "=VALUE"
    assert [problem for problem in problems(config) if not problem.endswith(only_a_user_knows)] == []
    for key, value, hint in leaves(config):
        if isinstance(value, bool):
            assert misfit("neither", hint) is not None, key
        elif isinstance(value, (int, float)):
            assert any(range_of(one) is not None for one in (hint, *get_args(hint))), key
            for hostile in (math.nan, math.inf, -math.inf, [1], "many", 10**400):
                may_be_text = isinstance(hostile, str) and str in get_args(hint)
                assert misfit(hostile, hint) is not None or may_be_text, (key, hostile)


def test_ranges_hold_their_ends() -> None:
    half_open = Range("(0, 1]", "try 0.5")
    assert [value in half_open for value in (0, 1e-300, 1, 1.0001, -1, math.nan, math.inf)] == [
        *(False, True, True, False, False, False, False)
    ]
    assert 10**400 not in Range("[0, 1e300]", "")


def test_the_table_has_remedies() -> None:
    for hint in TABLE.values():
        for one in (hint, *get_args(hint)):
            allowed = range_of(one)
            assert allowed is None or allowed.remedy


def test_constructors_check_without_a_configuration() -> None:
    with pytest.raises(ValueError, match=r"^power 0 is outside \[0.1, 10\]: alpha must fall with t, try 2$"):
        Polynomial(power=0)
    with pytest.raises(ValueError, match=r"^power null is not a number"):
        Polynomial(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^vocab_size 'many' is not a whole number"):
        Absorbing(Polynomial(1), "many", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing"):
        Polynomial()  # type: ignore[call-arg]


def test_an_annotation_that_is_not_imported_is_no_check() -> None:
    def init(self: Any, value: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
        assert value == 3

    checked(init)(None, 3)
