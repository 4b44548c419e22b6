"""Random overrides, short form: composed and built, a few trained; `python -m tests.faults.fuzz` is the full form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from attempt import attempt
from fuzz import LEFT_OUT, SETUPS, Key, examples, is_answered, keys, write_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from dlmkit.build import build_callbacks, build_data, build_module
from dlmkit.config import check_overrides, check_values, choices_of, compose, conf_dir, explain
from dlmkit.nested import flatten
from toy_runs import TOY, stop_at

KEYS = keys()
SHORT = {
    "derandomize": True,
    "database": None,
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
}


def drawn(key: Key) -> st.SearchStrategy[tuple[str, list[str]]]:
    beside = [other for other in KEYS if other.setup == key.setup]
    return st.tuples(st.just(key.setup), examples(key, beside))


EXAMPLES: st.SearchStrategy[Any] = st.sampled_from(KEYS).flatmap(drawn)


@settings(max_examples=20, **SHORT)
@given(EXAMPLES)
def test_composed_and_built(example: tuple[str, list[str]]) -> None:
    """Each is built, or the error is one line."""
    setup, own = example
    write_files(Path())
    overrides = [*SETUPS[setup], *own]
    try:
        config = compose(overrides, Path("run"))
        check_overrides(config, overrides)
        check_values(config)
        data = build_data(config)
        build_module(config, bytes_per_token=None)
        build_callbacks(config)
        assert len(data.corpus.val_sequences)
    except Exception as error:
        line = explain(error, overrides)
        if line is None:
            raise
        assert "\n" not in line
        assert " object at 0x" not in line


@settings(max_examples=8, **SHORT)
@given(EXAMPLES)
def test_trained(example: tuple[str, list[str]]) -> None:
    setup, own = example
    result = attempt([*SETUPS[setup], *own], prepare=write_files)
    assert is_answered(result), result


def test_a_fault_is_seen() -> None:
    planted = attempt([*TOY, stop_at(0, hook="on_train_start", error="RuntimeError")])
    assert planted.kind == "fault"
    assert not is_answered(planted)
    assert attempt(TOY).kind == "run"
    assert attempt([*TOY, "seed=null"]).kind == "refused"
    hung = attempt([*TOY, "trainer.num_nodes=2"], seconds=8.0)  # waits for the other node, as it should
    assert hung.kind == "time"


CHOICES = [
    (group.name, choice)
    for group in sorted(conf_dir().iterdir())
    if group.is_dir() and group.name != "experiment"
    for choice in choices_of(group.name)
    if choice not in LEFT_OUT.get(group.name, ())
]


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=list(map("=".join, CHOICES)))
def test_every_key_of_conf_has_its_turn(group: str, choice: str) -> None:
    """What is left out has the keys of what is not."""
    tried = {key.name for key in KEYS}
    content = OmegaConf.load(conf_dir() / group / f"{choice}.yaml")
    plain = OmegaConf.to_container(content, resolve=False)
    assert isinstance(plain, dict)
    written = {str(key): value for key, value in plain.items() if key != "defaults"}
    prefix = "" if group == "family" else f"{group}."
    named = {f"{prefix}{key}" for key in flatten(written) if key}
    assert {name for name in named if not name.startswith(("init_from.", "data.sources"))} <= tried
