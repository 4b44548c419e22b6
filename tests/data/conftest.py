"""Small real corpora for the tests of the data pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data_helpers import make_documents

from dlmkit.data.sources.text import Text
from dlmkit.data.text import TextDataModule
from dlmkit.data.tokenizers.bytes import Bytes


@pytest.fixture
def documents() -> list[str]:
    return make_documents(200)


@pytest.fixture
def corpus(tmp_path: Path, documents: list[str]) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture
def make_module(tmp_path: Path, corpus: Path) -> Callable[..., TextDataModule]:
    def make(**changes: object) -> TextDataModule:
        settings: dict = {
            "source": Text(str(corpus), separator="\n\n"),
            "tokenizer": Bytes(),
            "length": 32,
            "micro_batch_size": 4,
            "accumulate": 2,
            "num_steps": 5,
            "val_fraction": 0.2,
            "cache_dir": str(tmp_path / "cache"),
        }
        module = TextDataModule(**(settings | changes))
        module.prepare_data()
        module.setup("fit")
        return module

    return make
