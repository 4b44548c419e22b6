"""Which runs of a sweep wait for which."""

from __future__ import annotations

import pytest

from hydra_plugins.dlmkit_in_order.sweeper import sibling, stages_of

AR = {"family": "ar"}


def test_sibling_keeps_everything_else():
    assert sibling(["family=adapted", "seed=1"], AR) == ["family=ar", "seed=1"]
    assert sibling(["seed=1"], AR) == ["seed=1", "family=ar"]


def test_stages():
    runs = [
        ["family=adapted", "seed=0"],
        ["family=ar", "seed=0"],
        ["family=adapted", "seed=1"],
        ["family=ar", "seed=1"],
    ]
    assert stages_of(runs, [AR, None, AR, None]) == [1, 0, 1, 0]


def test_a_chain_takes_as_many_stages():
    runs = [["family=c"], ["family=b"], ["family=a"]]
    assert stages_of(runs, [{"family": "b"}, {"family": "a"}, None]) == [2, 1, 0]


def test_a_start_outside_the_sweep_is_not_waited_for():
    assert stages_of([["family=adapted"]], [AR]) == [0]


def test_circle():
    with pytest.raises(ValueError, match="break the circle"):
        stages_of([["family=a"], ["family=b"]], [{"family": "b"}, {"family": "a"}])
