"""Hydra's wording, which tells its errors apart: pinned, so that another release of Hydra is noticed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.utils import instantiate
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from dlmkit.config import conf_dir, errors, explain, register_resolvers


def error_of(*overrides: str) -> Exception:
    """What Hydra raises for these overrides."""
    register_resolvers()
    with (
        initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"),
        pytest.raises(Exception) as raised,
    ):
        compose("train", list(overrides))
    return raised.value


def chain(error: BaseException) -> list[BaseException]:
    return list(errors._causes(error))


def test_a_choice_that_is_no_text() -> None:
    error = error_of("optimizer=3")
    assert any(str(cause).startswith(errors.CHOICE_IS_NO_TEXT) for cause in chain(error))
    assert str(explain(error, ["seed=1", "optimizer=3"])).startswith("optimizer=3 is unknown: choose one of adamw")


def test_several_values_for_one_run() -> None:
    error = error_of("schedule=linear,cosine")
    assert isinstance(error, ConfigCompositionException)
    assert str(error).startswith(f"{errors.SEVERAL_VALUES} 'schedule=linear,cosine'")


@pytest.mark.parametrize("override", ["batch.sise=3", "scedule=3"])
def test_an_unknown_key(override: str) -> None:
    (found,) = [one for one in chain(error_of(override)) if isinstance(one, (ConfigAttributeError, ConfigKeyError))][:1]
    assert errors.KEY_IS_UNKNOWN in str(found)
    assert found.full_key == override.partition("=")[0]


def test_an_unknown_choice() -> None:
    found = next(one for one in chain(error_of("schedule=cosin")) if isinstance(one, MissingConfigException))
    assert found.missing_cfg_file == "schedule/cosin"


class Part:
    def __init__(self, size: int) -> None:
        self.size = size


def test_an_unknown_keyword() -> None:
    node: dict[str, Any] = {"part": {"_target_": f"{Part.__module__}.Part", "size": 1, "sise": 2}}
    with pytest.raises(InstantiationException) as raised:
        instantiate(node)
    assert str(raised.value).rpartition(errors.PART_OF_ERROR)[2] == "part"
    keyword = errors.UNKNOWN_KEYWORD.search(str(raised.value.__cause__))
    assert keyword is not None
    assert keyword[1] == "sise"
    assert str(explain(raised.value)).startswith("part does not fit its part: ")


def test_a_value_error_goes_before_hydras() -> None:
    error = ValueError("power 0 is not positive: give at least 1")
    error.__cause__ = error_of("schedule=cosin")
    assert explain(error) == "power 0 is not positive: give at least 1"


def test_paths_are_those_of_the_checkout() -> None:
    assert (conf_dir() / "train.yaml").is_file()
    assert Path(errors.__file__).parent.name == "config"


def test_a_file_that_cannot_be_used_is_named() -> None:
    error = PermissionError(13, "Permission denied", "corpus.txt")
    assert explain(error) == "'corpus.txt' cannot be used (Permission denied): check that path and its permissions"
    assert explain(OSError("without a file")) is None


def test_memory_that_does_not_suffice() -> None:
    class OutOfMemoryError(RuntimeError):
        """As torch names it."""

    for error in (
        OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ):
        assert str(explain(error)).startswith("out of memory (")
        assert "lower batch.size" in str(explain(error))


@pytest.mark.parametrize("override", ["callbacks=[1,2]", "schedule=[[1]]", "optimizer=[null]"])
def test_a_list_that_names_no_choice(override: str) -> None:
    error = error_of(override)
    assert isinstance(error, (TypeError, AttributeError))
    assert str(explain(error, [override])).startswith(f"{override} names no choice: choose one of ")
    assert explain(TypeError("bug"), ["schedule=linear"]) is None
