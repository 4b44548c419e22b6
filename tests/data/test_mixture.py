"""Mixtures: shares, nothing left out, nothing validated twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dlmkit.data.corpora.mixture import MixedSequences, MixtureCorpus
from dlmkit.data.corpora.text import TextCorpus
from dlmkit.data.sources.text import Text
from dlmkit.data.tokenizers.bytes import Bytes
from dlmkit.data.tokenizers.characters import Characters

LENGTH = 8
SETTINGS = {"length": LENGTH, "val_fraction": 0.3}


def source(folder: Path, letter: str, documents: int) -> Text:
    """Documents of one letter each, of different lengths."""
    (folder / f"{letter}.txt").write_text("|".join(letter * (10 + i) for i in range(documents)))
    return Text(str(folder / f"{letter}.txt"), separator="|")


@pytest.fixture
def mixture(tmp_path: Path) -> MixtureCorpus:
    sources = {
        "a": {"weight": 3.0, "source": source(tmp_path, "a", 20)},
        "b": {"weight": 1.0, "source": source(tmp_path, "b", 40)},
    }
    corpus = MixtureCorpus(sources, Bytes(), cache_dir=str(tmp_path / "cache"), **SETTINGS)
    corpus.prepare()
    return corpus


def letters(sequences: MixedSequences) -> list[str]:
    return [chr(min(row)) for row in sequences.tokens(range(len(sequences))).tolist()]


def test_shares(mixture: MixtureCorpus) -> None:
    for sequences in (mixture.train_sequences, mixture.val_sequences):
        counts = Counter(letters(sequences))
        assert counts["a"] / len(sequences) == pytest.approx(0.75, abs=1.0 / len(sequences))


def test_training_reads_all_and_validation_repeats_nothing(mixture: MixtureCorpus, tmp_path: Path) -> None:
    for letter, documents in (("a", 20), ("b", 40)):
        alone = TextCorpus(source(tmp_path, letter, documents), Bytes(), cache_dir=str(tmp_path / "c"), **SETTINGS)
        alone.prepare()

        def of_letter(sequences, letter=letter):
            rows = map(tuple, sequences.tokens(range(len(sequences))).tolist())
            return Counter(row for row in rows if chr(min(row)) == letter)

        mixed, whole = of_letter(mixture.train_sequences), of_letter(alone.train_sequences)
        assert set(mixed) == set(whole)
        assert all(mixed[row] >= whole[row] for row in whole)
        scored, all_scored = of_letter(mixture.val_sequences), of_letter(alone.val_sequences)
        assert all(scored[row] <= all_scored[row] for row in scored)
    assert mixture.num_val_tokens == len(mixture.val_sequences) * LENGTH
    assert 0.5 * mixture.num_val_tokens < mixture.val_bytes <= mixture.num_val_tokens


def test_the_fingerprint_knows_the_weights(mixture: MixtureCorpus, tmp_path: Path) -> None:
    sources = {
        "a": {"weight": 1.0, "source": source(tmp_path, "a", 20)},
        "b": {"weight": 1.0, "source": source(tmp_path, "b", 40)},
    }
    other = MixtureCorpus(sources, Bytes(), cache_dir=str(tmp_path / "cache"), **SETTINGS)
    assert other.fingerprint != mixture.fingerprint


def test_a_tokenizer_is_fitted_to_the_training_documents_of_all_sources(tmp_path: Path) -> None:
    sources = {letter: {"weight": 1.0, "source": source(tmp_path, letter, 20)} for letter in "ab"}
    corpus = MixtureCorpus(sources, Characters(), cache_dir=str(tmp_path / "cache"), **SETTINGS)
    corpus.prepare()
    assert corpus.decode(corpus.encode("abc")) == "ab\ufffd"
    assert {corpus.decode(row[:1]) for row in corpus.train_sequences.tokens(range(4))} <= {"a", "b", "<|eos|>"}


def test_bad_mixtures(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sources is empty"):
        MixtureCorpus({}, Bytes(), **SETTINGS)
    for weight in (0, "much"):
        with pytest.raises(ValueError, match=rf"data.sources.a.weight {weight} is not a positive number"):
            MixtureCorpus({"a": {"weight": weight, "source": source(tmp_path, "a", 5)}}, Bytes(), **SETTINGS)
    text = source(tmp_path, "a", 5)
    for entry, found in (
        ({"source": text}, "source"),
        ({"weight": 1}, "weight"),
        ({"source": text, "weight": 1, "share": 2}, "source, weight, share"),
        (3, "3"),
        ({}, "nothing"),
    ):
        with pytest.raises(ValueError, match=f"data.sources.a has {found}: give it a source and a weight"):
            MixtureCorpus({"a": entry}, Bytes(), **SETTINGS)
