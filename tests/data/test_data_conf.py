"""Every YAML of conf/data and conf/tokenizer names a real part, and its keys are the constructor's keywords."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from dlmkit.build import build_data
from dlmkit.config import compose
from dlmkit.data.corpora.base import Corpus
from dlmkit.data.order import BatchPlan

CONF = Path(__file__).parents[2] / "conf"
EVERY = sorted([*CONF.glob("data/*.yaml"), *CONF.glob("tokenizer/*.yaml")])
FILES = [path for path in EVERY if "defaults" not in OmegaConf.load(path)]  # the others are variants of these


def check(node: dict[str, Any]) -> None:
    parameters = inspect.signature(get_class(node["_target_"]).__init__).parameters
    keys = node.keys() - {"_target_"}
    assert keys == parameters.keys() - {"self", "args", "kwargs"}
    for value in node.values():
        if isinstance(value, dict):
            check(value)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_keys_are_the_constructor_keywords(path: Path) -> None:
    check(OmegaConf.to_container(OmegaConf.load(path), resolve=False))


@pytest.mark.parametrize("data", ["kjv", "markov"])
def test_hydra_builds_a_corpus(data: str, tmp_path: Path) -> None:
    config = OmegaConf.create({"length": 16})
    config.tokenizer = OmegaConf.load(CONF / "tokenizer" / "bytes.yaml")
    config.data = OmegaConf.load(CONF / "data" / f"{data}.yaml")
    if data == "kjv":
        config.data.cache_dir = str(tmp_path)
    corpus = instantiate(config.data)
    assert isinstance(corpus, Corpus)
    corpus.prepare()
    assert corpus.train_sequences.tokens([0, 1]).shape == corpus.val_sequences.segments([0, 1]).shape == (2, 16)


def test_the_plan_comes_from_the_run(tmp_path: Path) -> None:
    own = ["batch.size=12", "batch.accumulate=3", "batch.num_workers=1", "length=16", "budget.tokens=400", "seed=7"]
    data = build_data(compose(["data=markov", *own], tmp_path))
    assert data.plan == BatchPlan(micro_batch_size=4, accumulate=3, num_steps=3, seed=7, num_workers=1)
    assert [batch.tokens.shape for batch in data.train_dataloader()] == [(4, 16)] * 9
