"""Which runs of a sweep wait for which."""

from __future__ import annotations

import pytest

from hydra_plugins.dlmkit_in_order.sweeper import parents_of, short_names, sibling, stages_of

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
    parents = parents_of(runs, [AR, None, AR, None])
    assert parents == [1, None, 3, None]
    assert stages_of(runs, parents) == [1, 0, 1, 0]


def test_a_chain_takes_as_many_stages():
    runs = [["family=c"], ["family=b"], ["family=a"]]
    assert stages_of(runs, parents_of(runs, [{"family": "b"}, {"family": "a"}, None])) == [2, 1, 0]


def test_a_start_outside_the_sweep_is_not_waited_for():
    assert parents_of([["family=adapted"]], [AR]) == [None]
    assert stages_of([["family=adapted"]], [None]) == [0]


def test_circle():
    runs = [["family=a"], ["family=b"]]
    with pytest.raises(ValueError, match="break the circle"):
        stages_of(runs, parents_of(runs, [{"family": "b"}, {"family": "a"}]))


def test_runs_are_named_by_what_differs():
    assert short_names([["data=kjv", "seed=0"], ["data=kjv", "seed=1"]]) == ["seed=0", "seed=1"]
    assert short_names([["data=kjv", "seed=0"]]) == ["data=kjv,seed=0"]
