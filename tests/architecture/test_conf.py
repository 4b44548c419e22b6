"""conf/ and the classes: a YAML's keys are its constructor's keywords, its name is the part's, every part has one."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from dlmkit.config import compose, conf_dir

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
NO_PARTS = ("family", "experiment", "callbacks", "logger")
FILES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name not in NO_PARTS)
PARTS = [path for path in FILES if "defaults" not in OmegaConf.load(path)]
VARIANTS = [path for path in FILES if path not in PARTS]  # another part with other values
LISTED = sorted(CONF.glob("callbacks/*.yaml")) + [
    CONF / "logger" / f"{x}.yaml" for x in ("tensorboard", "wandb", "mlflow")
]
CSV_ALONE = [CONF / "logger" / f"{name}.yaml" for name in ("csv", "none")]
PRESETS = [*sorted(CONF.glob("family/*.yaml")), *sorted((ROOT / "experiments").glob("*.yaml"))]

# Every name here is one that users type and old commands use: adding one is a decision.
TOP_LEVEL = {
    *("backbone", "callbacks", "corruption", "data", "logger", "lr_schedule", "objective", "optimizer", "process"),
    *("sampler", "schedule", "t_sampler", "tokenizer", "trainer"),
    *("ar_weight", "batch", "budget", "non_finite", "validation", "vocab"),
    *("causal", "compile", "if_exists", "init_from", "length", "member", "num_steps", "run_dir", "seed"),
}
SECTIONS = {
    "batch": {"size", "accumulate", "micro_size", "num_workers"},
    "budget": {"tokens"},
    "non_finite": {"policy", "max_skipped"},
    "validation": {"every_steps", "at_start", "check_times", "num_times"},
    "trainer": {
        "accelerator",
        "devices",
        "num_nodes",
        "strategy",
        "precision",
        "gradient_clip_val",
        "log_every_n_steps",
        "detect_anomaly",
    },
    "vocab": {"size", "mask_id", "bos_id", "eos_id"},
}
CHOICES = {
    "schedule": {"cosine", "cosine_mdlm", "geometric", "linear", "log_linear", "polynomial"},
    "process": {"absorbing", "hybrid", "none", "uniform"},
    "corruption": {"complementary", "fixed_count", "independent"},
    "objective": {
        *("autoregressive", "block", "discrete", "elbo", "hybrid", "masked", "score_entropy", "uniform"),
    },
    "t_sampler": {"clipped", "iid", "importance", "learned", "offset_grid", "stratified"},
    "sampler": {
        *("ancestral", "autoregressive", "blockwise", "confidence", "entropy_bound", "factor", "first_hitting", "p2"),
        *("remdm", "remdm_loop", "score_analytic", "score_tau_leaping", "self_correcting", "semi_autoregressive"),
        "threshold",
    },
}
"""The parts that have a name of their own; of backbones and data several YAMLs may configure one class."""


def load(path: Path) -> dict[str, Any]:
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def nodes(config: Any) -> Iterator[dict[str, Any]]:
    """Yield everything that Hydra will call."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield config
        for value in config.values():
            yield from nodes(value)


@pytest.mark.parametrize("path", [*PARTS, *LISTED], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_keys_are_keywords(path: Path) -> None:
    """The kit's own classes have all of theirs in the YAML; of third parties' those that the kit sets."""
    found = list(nodes(load(path)))
    assert found
    for node in found:
        target = get_object(node["_target_"])
        parameters = inspect.signature(target).parameters
        keys = {key for key in node if not key.startswith("_")}
        passed_on = node["_target_"].endswith("WandbLogger")  # the rest goes to wandb.init
        assert passed_on or keys <= parameters.keys(), f"{node['_target_']} has no such keyword"
        if target.__module__.startswith("dlmkit."):
            given_later = {"params"} if node.get("_partial_") else set()  # an optimizer's weights
            shown = keys | given_later
            assert parameters.keys() <= shown, f"{node['_target_']} has keywords that {path.name} does not show"


@pytest.mark.parametrize("path", PARTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_part_is_one_node(path: Path) -> None:
    assert "_target_" in load(path)


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_variant_says_what_differs(path: Path) -> None:
    own = load(path)
    (base,) = own.pop("defaults")
    assert set(own) <= set(load(path.with_stem(base)))
    for key, value in own.items():
        assert value != load(path.with_stem(base))[key]


@pytest.mark.parametrize("path", LISTED, ids=lambda path: path.stem)
def test_a_callback_or_logger_stands_under_its_name(path: Path) -> None:
    """So that lists of them join."""
    assert list(load(path)) == [path.stem]


def test_every_logger_is_listed() -> None:
    assert sorted(CONF.glob("logger/*.yaml")) == sorted([*(p for p in LISTED if p.parent.name == "logger"), *CSV_ALONE])
    assert all(load(path) == {} for path in CSV_ALONE)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("tensorboard", ["tensorboard"]),
        ("wandb", ["wandb"]),
        ("[tensorboard,wandb,mlflow]", ["tensorboard", "wandb", "mlflow"]),
        *(("csv", []), ("none", []), ("[]", [])),
    ],
)
def test_loggers_join(choice: str, names: list[str]) -> None:
    config = compose([f"logger={choice}"], Path("runs/trial/seed=1"))
    OmegaConf.resolve(config)
    assert list(config.logger) == names
    if "mlflow" in names:
        assert (config.logger.wandb.group, config.logger.wandb.name) == ("trial", "seed=1")
        assert (config.logger.mlflow.experiment_name, config.logger.mlflow.run_name) == ("trial", "seed=1")


@pytest.mark.parametrize(
    ("group", "folder"),
    [
        ("schedule", "schedules"),
        ("process", "processes"),
        ("corruption", "corruption"),
        ("objective", "objectives"),
        ("t_sampler", "t_samplers"),
        ("sampler", "samplers"),
        ("backbone", "backbones"),
        ("data", "data/corpora"),
        ("tokenizer", "data/tokenizers"),
    ],
)
def test_every_part_has_a_yaml(group: str, folder: str) -> None:
    targets = {get_object(node["_target_"]) for path in CONF.glob(f"{group}/*.yaml") for node in nodes(load(path))}
    package = f"dlmkit.{folder.replace('/', '.')}"
    base = importlib.import_module(f"{package}.base")
    interfaces = {value for value in vars(base).values() if inspect.isclass(value) and inspect.isabstract(value)}
    interfaces = {value for value in interfaces if value.__module__ == base.__name__}
    assert interfaces
    classes = set()
    for path in (ROOT / "src/dlmkit" / folder).rglob("*.py"):
        inner = path.relative_to(ROOT / "src/dlmkit" / folder).with_suffix("").parts
        module = importlib.import_module(".".join([package, *(name for name in inner if name != "__init__")]))
        classes |= {
            value
            for value in vars(module).values()
            if inspect.isclass(value) and issubclass(value, tuple(interfaces)) and not inspect.isabstract(value)
        }
    assert classes <= targets


@pytest.mark.parametrize("group", CHOICES)
def test_a_part_has_the_name_of_its_yaml(group: str) -> None:
    """Messages and records then name it as users type it: objective=masked."""
    paths = sorted(CONF.glob(f"{group}/*.yaml"))
    assert {path.stem for path in paths} == CHOICES[group]
    for path in paths:
        part = get_object(load(path)["_target_"])
        assert (part.group, part.name) == (group, path.stem)


def test_the_names_that_users_type() -> None:
    config = compose([], Path("run"))
    assert set(config) == TOP_LEVEL
    for section, keys in SECTIONS.items():
        assert set(config[section]) == keys


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_compose(path: Path) -> None:
    group = "experiment" if path.parent.name == "experiments" else path.parent.name
    config = compose([f"{group}={path.stem}"], Path("run"))
    OmegaConf.resolve(config)
    assert config.num_steps > 0
    given_by_users = {"backbone.name", "data.files", "tokenizer.name"}
    assert OmegaConf.missing_keys(config) <= given_by_users


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_states_what_differs(path: Path) -> None:
    """Its keys are the kit's, its values are not the defaults, and it has a README."""
    own = load(path)
    defaults = OmegaConf.to_container(compose([], Path("run")), resolve=False)
    assert set(own) <= {*TOP_LEVEL, "hydra", "defaults"}
    assert "hydra" not in own or own["hydra"]["sweeper"]["params"]
    assert (path.with_suffix("") / "README.md").is_file()
    for key, value in own.items():
        if key in defaults and not isinstance(value, dict):
            assert value != defaults[key]
        elif key in defaults and isinstance(value, dict):
            assert not [name for name in value if value[name] == defaults[key].get(name)]


def test_an_installed_package_and_a_checkout_find_conf() -> None:
    assert conf_dir().resolve() == CONF or (conf_dir() / "train.yaml").is_file()
