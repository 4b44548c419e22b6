"""Small real corpora for the tests of the data pipeline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data_helpers import make_documents

from dlmkit.data.corpora.text import TextCorpus
from dlmkit.data.sources.text import Text
from dlmkit.data.tokenizers.bytes import Bytes


@pytest.fixture
def documents() -> list[str]:
    return make_documents(200)


@pytest.fixture
def text_file(tmp_path: Path, documents: list[str]) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture
def make_corpus(tmp_path: Path, text_file: Path) -> Callable[..., TextCorpus]:
    def make(**changes: object) -> TextCorpus:
        settings: dict = {
            "source": Text(str(text_file), separator="\n\n"),
            "tokenizer": Bytes(),
            "length": 32,
            "val_fraction": 0.2,
            "cache_dir": str(tmp_path / "cache"),
        }
        corpus = TextCorpus(**(settings | changes))
        corpus.prepare()
        return corpus

    return make
