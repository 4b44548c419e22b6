"""Hostile text: marks, broken links and encodings, nulls, deep nesting, cut pairs, gaps that are none."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from dlmkit import load
from dlmkit.data.corpora.text import TextCorpus
from dlmkit.data.sources.base import Source
from dlmkit.data.sources.jsonl import JsonLines
from dlmkit.data.sources.text import Text
from dlmkit.data.tokenizers.bpe import BPE
from dlmkit.data.tokenizers.bytes import Bytes
from dlmkit.data.tokenizers.characters import Characters
from dlmkit.requests import RequestBuilder
from toy_runs import MODEL, SMALL, Outcome, dlmkit, text_corpus, text_data, weights

MARK = b"\xef\xbb\xbf"


def run_on(*data: str, steps: int = 2) -> Outcome:
    return dlmkit("train", *MODEL, *SMALL, "hydra.run.dir=runs/x", f"budget.tokens={32 * steps}", *data)


def corpus_of(source: Source, tokenizer: Bytes | BPE | Characters | None = None) -> TextCorpus:
    corpus = TextCorpus(source, tokenizer or Bytes(), length=8, val_fraction=0.5, cache_dir="cache")
    corpus.prepare()
    return corpus


def test_a_byte_order_mark_is_no_text() -> None:
    Path("plain.txt").write_bytes(b"one\n\ntwo")
    Path("marked.txt").write_bytes(MARK + b"one\n\ntwo")
    assert list(Text("marked.txt").documents()) == ["one\n\ntwo"]
    assert list(Text("marked.txt", "\n\n").documents()) == ["one", "two"]
    assert Text("marked.txt").fingerprint != Text("plain.txt").fingerprint
    Path("marked.jsonl").write_bytes(MARK + b'{"text": "one"}\n{"text": "two"}\n')
    assert list(JsonLines("marked.jsonl").documents()) == ["one", "two"]


def test_a_cache_that_holds_the_mark_is_not_used() -> None:
    """Earlier versions packed it under the fingerprint of the file's content alone."""
    from dlmkit.data.files import digest, identity

    Path("marked.txt").write_bytes(MARK + b"one\n\ntwo")
    assert Text("marked.txt").fingerprint != digest(["text", identity([Path("marked.txt")]), None])


def test_a_broken_link_is_named() -> None:
    text_corpus(Path("a.txt"))
    os.symlink("gone.txt", "b.txt")
    outcome = run_on("data=text", "data.source.files='*.txt'", "tokenizer=bytes")
    assert outcome.code == 2
    assert "'b.txt' is a link to 'gone.txt', which does not exist: mend it, or leave it out" in outcome.line


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a"}\n{"text": 3}\n', "line 2: field 'text' holds a int: name a field of text, or leave the line"),
        (b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", "line 2 is nested too deeply"),
        (b'{"text": "a"}\n' + b'{"a":' * 100_000 + b"\n", "line 2 is nested too deeply"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 is not UTF-8"),
        (b'{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON"),
        (b'{"text": "a"}\n{"body": "b"}\n', "line 2 has no field 'text': set field to one of body"),
        (b'{"text": ' + b"9" * 5000 + b"}\n", "line 1 is not JSON"),
    ],
    ids=["number", "brackets", "braces", "encoding", "cut off", "field", "huge number"],
)
def test_a_bad_json_line_is_one_line(content: bytes, expected: str) -> None:
    Path("t.jsonl").write_bytes(content)
    outcome = run_on("data=jsonl", "data.source.files=t.jsonl", "tokenizer=bytes")
    assert outcome.code == 2, outcome.err
    assert expected in outcome.line
    assert len(outcome.line) < 300


def test_null_is_an_empty_document_and_said() -> None:
    rows = [{"text": None if index % 10 == 0 else f"some words of document {index}"} for index in range(60)]
    Path("t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert list(JsonLines("t.jsonl").documents()).count("") == 6
    outcome = run_on("data=jsonl", "data.source.files=t.jsonl", "tokenizer=bytes")
    assert outcome.code == 0, outcome.err
    assert "dlmkit: 6 documents without text are left out" in outcome.err.splitlines()


def test_text_that_is_not_utf8() -> None:
    Path("t.txt").write_bytes(b"good text\n\n\xff\xfe")
    outcome = run_on("data=text", "data.source.files=t.txt", "tokenizer=bytes")
    assert outcome.code == 2
    assert "'t.txt' is not UTF-8" in outcome.line


@pytest.mark.parametrize("tokenizer", [Bytes, Characters, lambda: BPE(265)], ids=["bytes", "characters", "bpe"])
def test_nul_and_empty_documents_and_odd_characters_are_text(tokenizer: type[Bytes]) -> None:
    documents = [
        f"doc {index % 4} {index // 4 % 4} {index // 16} \x00 \u2028 \U0001f600 \ud7ff e\u0301" for index in range(40)
    ]
    Path("t.txt").write_text("|".join(["", *documents, "  ", ""]))
    corpus = corpus_of(Text("t.txt", "|"), tokenizer())
    assert sum(one.documents for one in corpus.statistics.values()) == 40
    assert corpus.decode(corpus.encode(documents[0])) == documents[0]


def test_a_line_of_50_megabytes() -> None:
    Path("t.jsonl").write_text(json.dumps({"text": "word " * 10_000_000}) + "\n" + json.dumps({"text": "short text"}))
    corpus = TextCorpus(JsonLines("t.jsonl"), Bytes(), length=1024, val_fraction=1.0, cache_dir="cache")
    corpus.prepare()
    assert corpus.num_val_tokens >= 50_000_000 - 1024
    Path("t.txt").write_text("word " * 10_000_000)
    assert sum(map(len, Text("t.txt", "\n\n").documents())) == 50_000_000


def test_one_file_without_separator() -> None:
    text_corpus(Path("t.txt"))
    outcome = run_on("data=text", "data.source.files=t.txt", "tokenizer=bytes")
    assert outcome.code == 2
    assert "all text is one document" in outcome.line
    assert r"set data.source.separator to the text between documents, such as '\n\n'" in outcome.line


def pairs_file(number: int = 40, prompt: int = 2, response: int = 2) -> list[str]:
    rows = [{"prompt": f"p{i:02d}" * prompt, "response": f"{i:02d}" * response} for i in range(number)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ["data=pairs", "data.files=pairs.jsonl", "data.separator='='", "data.val_fraction=0.3", "tokenizer=bytes"]


@pytest.mark.parametrize("backbone", ["hf", "dit_tiny"])
def test_pairs_have_one_bos(backbone: str) -> None:
    data = pairs_file()
    small = SMALL if backbone == "hf" else [*SMALL, "backbone=dit_tiny", "backbone.shift=true"]
    options = [*(MODEL if backbone == "hf" else []), *small, *data, "length=12", "callbacks=[checkpoint]"]
    options = [one for one in options if not one.startswith("callbacks.samples")]
    outcome = dlmkit("train", *options, "hydra.run.dir=runs/x", "budget.tokens=96")
    assert outcome.code == 0, outcome.err
    model = load("runs/x")
    assert model.backbone.alignment.bos_id is None
    assert not model.backbone.predicts_first  # token 0 is the pair's own BOS
    assert "cut" not in outcome.err


def test_pairs_that_are_cut_are_counted() -> None:
    options = [one for one in SMALL if not one.startswith("callbacks.samples")]
    data = pairs_file(prompt=4)
    outcome = dlmkit("train", *MODEL, *options, *data, "hydra.run.dir=runs/x", "budget.tokens=64", "callbacks=[]")
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("dlmkit: of")]
    train, val = (int(line.split()[2]) for line in lines)
    assert train + val == 40
    assert lines[0] == (
        f"dlmkit: of {train} train pairs {train} prompts lose their beginning and 0 responses their end at length 8:"
        " raise length to keep them"
    )


@pytest.mark.parametrize(
    "gap", ["[MASK:x]", "[MASK:]", "[MASK]", "[MASK: 3]", "[MASK:-1]", "[mask:3]", "[MASK:3", "[MASK:99999999]"]
)
def test_a_gap_that_is_none_is_refused(gap: str) -> None:
    builder = RequestBuilder(predicts_first=True, start_id=None)
    with pytest.raises(ValueError, match=r"is no gap: write \[MASK:n\] with a whole number n of tokens") as error:
        builder.infill(f"In the {gap} God [MASK:2] created", Bytes())
    assert gap[:8] in str(error.value)


def test_text_that_only_looks_like_a_gap_is_text() -> None:
    builder = RequestBuilder(predicts_first=True, start_id=None)
    request = builder.infill("[MASKED] mask [M] [MASK:2]", Bytes())
    assert request.fixed.count(False) == 2


def gpt2_folder(added: int) -> None:
    """Write a GPT-2 with a tokenizer of its own, to which tokens were added, its embeddings not resized."""
    words = ["in", "the", "beginning", "was", "word", "and", "with", "light", "upon", "deep", "waters"]
    model = Tokenizer(WordLevel({word: i for i, word in enumerate(["?", "<end>", *words])}, unk_token="?"))
    model.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="?", eos_token="<end>")
    size = len(tokenizer)
    tokenizer.add_tokens([f"<extra{index}>" for index in range(added)])
    tokenizer.save_pretrained("m")
    GPT2LMHeadModel(GPT2Config(vocab_size=size, n_layer=1, n_head=2, n_embd=16, n_positions=16)).save_pretrained("m")


def test_tokens_added_to_the_models_own_tokenizer() -> None:
    gpt2_folder(added=3)
    data = [one for one in text_data(text_corpus(Path("t.txt"))) if not one.startswith("tokenizer")]
    options = ["experiment=adapt", "backbone.name=m", *SMALL, *data, "callbacks.annealing.anneal_steps=1"]
    outcome = dlmkit("train", *options, "hydra.run.dir=runs/x", "budget.tokens=64")
    assert outcome.code == 0, outcome.err
    assert (
        "dlmkit: backbone.name 'm' has embeddings for 13 tokens and the tokenizer 17 with the mask: 4 rows"
        in outcome.err
    )
    (table,) = [value for key, value in weights(Path("runs/x")).items() if key.endswith("wte.weight")]
    assert table.shape == (17, 16)


def test_a_tokenizer_of_another_model_is_still_refused() -> None:
    gpt2_folder(added=2000)
    data = [one for one in text_data(text_corpus(Path("t.txt"))) if not one.startswith("tokenizer")]
    outcome = dlmkit("train", "experiment=adapt", "backbone.name=m", *SMALL, *data, "hydra.run.dir=runs/x")
    assert outcome.code == 2
    assert "set tokenizer=huggingface and tokenizer.name to the model's own tokenizer" in outcome.err


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "garbage", "[]", "{}", '{"model": 3}'])
def test_a_damaged_tokenizer_of_a_model(name: str, content: str) -> None:
    gpt2_folder(added=0)
    (Path("m") / name).write_text(content)
    outcome = run_on(*text_data(text_corpus(Path("t.txt"))), "tokenizer=huggingface", "tokenizer.name=./m")
    if outcome.code == 0:  # transformers has defaults for what is not there
        assert (name, content) == ("tokenizer_config.json", "{}")
    else:
        assert outcome.code == 2, outcome.err
        assert "./m" in outcome.line or "tokenizer" in outcome.line
