"""Packing keeps every token in order, splits by document, counts bytes, and the cache is exact and atomic."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import pytest
from data_helpers import make_documents, one_line
from numpy.typing import NDArray

from dlmkit.data import packing
from dlmkit.data.corpora.text import TextCorpus
from dlmkit.data.files import cache_root, write_folder
from dlmkit.data.packing import Packer, Split, pack
from dlmkit.data.sequences import ArrowSequences
from dlmkit.data.sources.text import Text
from dlmkit.data.tokenizers.bpe import BPE
from dlmkit.data.tokenizers.bytes import Bytes
from dlmkit.data.tokenizers.characters import Characters

Make = Callable[..., TextCorpus]


def everything(sequences: ArrowSequences) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    indices = range(len(sequences))
    return sequences.tokens(indices), sequences.segments(indices)


@pytest.mark.parametrize("tokens_per_write", [1, 50, 2**20])
@pytest.mark.parametrize("length", [1, 7, 64])
def test_packing_keeps_every_token_in_order_with_its_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, tokens_per_write: int
) -> None:
    monkeypatch.setattr(packing, "_TOKENS_PER_WRITE", tokens_per_write)
    tokenizer = Bytes()
    documents = [tokenizer.encode(text) for text in make_documents(20)]
    packer = Packer(tmp_path / "a.arrow", length, tokenizer)
    for ids in documents:
        packer.add(np.array(ids, dtype=np.int32), len(ids))
    statistics = packer.finish()
    stream = [(i, number) for number, ids in enumerate(documents) for i in [*ids, tokenizer.eos_id]]
    tokens, segments = everything(ArrowSequences(tmp_path / "a.arrow"))
    assert tokens.size == statistics.tokens == len(stream) // length * length
    assert tokens.ravel().tolist() == [token for token, _ in stream[: tokens.size]]
    numbers = np.array([number for _, number in stream[: tokens.size]]).reshape(-1, length)
    assert np.array_equal(segments, numbers - numbers[:, :1])


def test_split_is_by_document_and_equal_documents_stay_together(make_corpus: Make, documents: list[str]) -> None:
    corpus = make_corpus(length=8)
    sides = {side: corpus.decode(everything(sequences)[0].ravel().tolist()).split("<|eos|>") for side, sequences in
             (("train", corpus.train_sequences), ("val", corpus.val_sequences))}  # fmt: skip
    train, val = set(sides["train"][:-1]), set(sides["val"][:-1])  # without the one that was cut
    assert not train & val
    assert train | val <= set(documents)
    assert len(train) + len(val) >= len(documents) - 2
    assert 0.1 < len(val) / len(documents) < 0.3
    split = Split(0.5, seed=3)
    assert [split.side(text) for text in documents] == [split.side(text) for text in reversed(documents)][::-1]


def test_split_seed_and_fraction_choose_and_growing_the_corpus_moves_nothing(documents: list[str]) -> None:
    def chosen(split: Split, texts: list[str]) -> set[str]:
        return {text for text in texts if split.side(text) == "val"}

    assert chosen(Split(0.3, 0), documents) != chosen(Split(0.3, 1), documents)
    assert chosen(Split(0.1, 0), documents) < chosen(Split(0.3, 0), documents)
    assert chosen(Split(0.3, 0), documents[:100]) == chosen(Split(0.3, 0), documents) & set(documents[:100])


class Spy(Characters):
    """Characters that remember what they learned from."""

    learned: Sequence[str] = ()

    def fit(self, documents: Callable, cache_dir: Path) -> None:
        type(self).learned = list(documents())
        super().fit(documents, cache_dir)


def test_tokenizers_learn_from_training_documents_only(make_corpus: Make, documents: list[str]) -> None:
    make_corpus(tokenizer=Spy())
    assert set(Spy.learned) == {text for text in documents if Split(0.2, 0).side(text) == "train"}


def test_fingerprint_changes_exactly_with_what_the_sequences_depend_on(
    make_corpus: Make, tmp_path: Path, text_file: Path
) -> None:
    base = make_corpus().fingerprint
    (tmp_path / "other.txt").write_text(text_file.read_text() + "\n\nmore")
    changed = [
        make_corpus(length=16),
        make_corpus(tokenizer=BPE(300)),
        make_corpus(tokenizer=BPE(301)),
        make_corpus(val_fraction=0.3),
        make_corpus(split_seed=1),
        make_corpus(source=Text(str(tmp_path / "other.txt"), separator="\n\n")),
    ]
    assert len({base, *(corpus.fingerprint for corpus in changed)}) == 7
    unchanged = make_corpus(document_masking=True)
    assert unchanged.fingerprint == base
    assert base == "c6f70b0d8cabd17b"  # else caches are packed again, and runs on equal data count as different


class Counting(Bytes):
    """Bytes that count the texts they are given."""

    encoded = 0

    def encode_batch(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        type(self).encoded += len(texts)
        return super().encode_batch(texts)


def test_cache_hit_gives_identical_data_and_tokenises_nothing(make_corpus: Make, documents: list[str]) -> None:
    Counting.encoded = 0
    first = make_corpus(tokenizer=Counting())
    assert Counting.encoded == len(documents)
    second = make_corpus(tokenizer=Counting())
    assert Counting.encoded == len(documents)
    for mine, other in (
        (first.train_sequences, second.train_sequences),
        (first.val_sequences, second.val_sequences),
    ):
        for left, right in zip(everything(mine), everything(other), strict=True):
            assert np.array_equal(left, right)


def test_validation_bytes_are_those_of_the_text_in_complete_sequences(make_corpus: Make, documents: list[str]) -> None:
    corpus = make_corpus(length=64)  # bytes are tokens here, so the exact number is known
    tokens, _ = everything(corpus.val_sequences)
    assert corpus.val_bytes == int((tokens != 256).sum())
    assert corpus.num_val_tokens == tokens.size == corpus.statistics["val"].tokens
    assert corpus.statistics["train"].documents + corpus.statistics["val"].documents == len(documents)
    # with any tokenizer: the kept documents' bytes, the cut one's in proportion
    learned = make_corpus(length=64, tokenizer=BPE(400))
    text = learned.tokenizer.decode(everything(learned.val_sequences)[0].ravel().tolist(), skip_special=True)
    assert learned.val_bytes == pytest.approx(len(text.encode()), abs=40)


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    lines = tmp_path / "a.txt"
    lines.write_text("|".join(["  ", *make_documents(60), "\n", ""]))
    pack(Text(str(lines), "|"), Bytes(), Split(0.3, 0), 8, tmp_path / "out")
    statistics = packing.read_statistics(tmp_path / "out")
    assert statistics["train"].documents + statistics["val"].documents == 60


def test_huggingface_datasets_opens_the_cache(make_corpus: Make) -> None:
    corpus = make_corpus()
    opened = datasets.Dataset.from_file(str(corpus.folder / "train.arrow"))
    assert opened[3]["tokens"] == corpus.train_sequences.tokens([3])[0].tolist()
    assert opened[3]["segments"] == corpus.train_sequences.segments([3])[0].tolist()


def test_sequences_are_sent_to_workers_as_a_path(make_corpus: Make) -> None:
    sequences = make_corpus().train_sequences
    sent = pickle.dumps(sequences)
    assert len(sent) < 500
    assert np.array_equal(pickle.loads(sent).tokens([5, 0]), sequences.tokens([5, 0]))


def _pack_there(text_file: str, folder: str) -> None:
    pack(Text(text_file, "\n\n"), Bytes(), Split(0.2, 0), 16, Path(folder))


def test_two_processes_may_race(tmp_path: Path, text_file: Path) -> None:
    context = multiprocessing.get_context("fork")
    folder = tmp_path / "out" / "packed"
    racers = [context.Process(target=_pack_there, args=(str(text_file), str(folder))) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert [path.name for path in folder.parent.iterdir()] == ["packed"]


def test_lost_race_keeps_the_first_folder_and_crash_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "name"

    def fill_late(draft: Path) -> None:
        (draft / "who").write_text("second")
        write_folder(folder, lambda other: (other / "who").write_text("first") and None)

    write_folder(folder, fill_late)
    assert (folder / "who").read_text() == "first"

    def crash(draft: Path) -> None:
        (draft / "half").write_text("...")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_folder(tmp_path / "cache" / "crashed", crash)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["name"]


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DLMKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_root(None) == Path.home() / ".cache" / "dlmkit"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root(None) == Path("/x/dlmkit")
    monkeypatch.setenv("DLMKIT_CACHE", "/y")
    assert cache_root(None) == Path("/y")
    assert cache_root("~/z") == Path.home() / "z"


class TooLarge(Bytes):
    """Claims fewer ids than it makes."""

    vocab_size = 100


def test_bad_input_is_explained_in_one_line(make_corpus: Make, tmp_path: Path, text_file: Path) -> None:
    for changes, expected in (
        ({"length": 10**6}, r"train has \d+ tokens in \d+ documents, less than one sequence of length 1000000: use a"),
        ({"val_fraction": 0.0001}, r"val has 0 tokens in 0 documents.*use a larger val_fraction \(now 0.0001\)"),
        (
            {"source": Text(str(text_file))},
            r"all text is one document, .*: set data.source.separator to the text between",
        ),
        ({"val_fraction": 0.0}, r"val_fraction 0.0 is outside \(0, 1\]"),
        ({"length": 0}, "length 0 is outside"),
        ({"tokenizer": TooLarge()}, r"token id \d+ is outside \[0, 100\)"),
    ):
        with pytest.raises(ValueError, match=expected) as error:
            make_corpus(**changes)
        one_line(error)
    assert not [path for path in (tmp_path / "cache").glob("blocks/*") if path.is_dir()]
