"""Prompts with responses: the form of a sequence, what is scored, what is cut."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dlmkit.data.corpora.pairs import PairsCorpus
from dlmkit.data.module import CorpusDataModule
from dlmkit.data.order import BatchPlan
from dlmkit.data.tokenizers.bytes import Bytes

EOS = 256


def pairs(path: Path, rows: list[tuple[str, str]]) -> str:
    path.write_text("\n".join(json.dumps({"q": prompt, "a": response}) for prompt, response in rows))
    return str(path)


def corpus_of(tmp_path: Path, rows: list[tuple[str, str]], length: int = 12, padding: bool = True) -> PairsCorpus:
    corpus = PairsCorpus(
        files=pairs(tmp_path / "train.jsonl", rows),
        val_files=pairs(tmp_path / "val.jsonl", [("p", "r")]),
        prompt="q",
        response="a",
        separator="=",
        score_padding=padding,
        tokenizer=Bytes(),
        length=length,
    )
    corpus.prepare()
    return corpus


def first_sequence(corpus: PairsCorpus) -> tuple[list[int], list[bool]]:
    return corpus.train_sequences.tokens([0])[0].tolist(), corpus.train_sequences.scored([0])[0].tolist()


@pytest.mark.parametrize("padding", [True, False])
def test_the_form_of_a_sequence(tmp_path, padding):
    tokens, scored = first_sequence(corpus_of(tmp_path, [("ask", "say")], padding=padding))
    assert tokens == [EOS, *b"ask", *b"=", *b"say", EOS, EOS, EOS, EOS]
    assert scored == [False] * 5 + [True] * 4 + [padding] * 3


def test_what_does_not_fit(tmp_path):
    """The response loses its end first, until three places are left; then the prompt loses its beginning."""
    tokens, scored = first_sequence(corpus_of(tmp_path, [("0123456789", "abcd")]))
    assert tokens == [EOS, *b"56789", *b"=", *b"abcd", EOS]
    assert scored == [False] * 7 + [True] * 5
    tokens, _ = first_sequence(corpus_of(tmp_path, [("0123456789", "abcdefghijkl")]))
    assert tokens == [EOS, *b"9", *b"=", *b"abcdefgh", EOS]


def test_batches_score_responses_alone(tmp_path):
    corpus = corpus_of(tmp_path, [("ask", "say")], padding=False)
    (batch,) = CorpusDataModule(corpus, BatchPlan(1, 1, 1)).train_dataloader()
    assert batch.tokens[0, batch.scored[0]].tolist() == [*b"say", EOS]
    assert corpus.num_val_tokens == 2


def test_a_share_validates_and_no_prompt_stands_on_both_sides(tmp_path):
    rows = [(f"prompt {i % 30}", f"{i}") for i in range(60)]
    corpus = PairsCorpus(pairs(tmp_path / "all.jsonl", rows), None, "q", "a", "=", True, Bytes(), 32, val_fraction=0.3)
    train, val = ({pair.prompt for pair in side} for side in (corpus.train_pairs, corpus.val_pairs))
    assert not train & val
    assert len(corpus.train_pairs) + len(corpus.val_pairs) == 60
    assert 5 <= len(corpus.val_pairs) <= 35


def test_bad_pairs(tmp_path):
    with pytest.raises(ValueError, match="has an empty 'a'"):
        corpus_of(tmp_path, [("ask", " ")])
    with pytest.raises(ValueError, match="leaves no room for a prompt"):
        corpus_of(tmp_path, [("ask", "abcdefgh")], length=3)
    (tmp_path / "other.jsonl").write_text('{"question": "x", "a": "y"}')
    with pytest.raises(ValueError, match="no field 'q'"):
        PairsCorpus(str(tmp_path / "other.jsonl"), None, "q", "a", "=", True, Bytes(), 12)


def test_scored_is_kept_apart_from_tokens(tmp_path):
    corpus = corpus_of(tmp_path, [("ask", "say"), ("a", "long response")])
    assert corpus.train_sequences.scored([1, 0]).shape == (2, 12)
    assert np.all(corpus.train_sequences.segments([0, 1]) == 0)
