"""The data cache under damage, without rights, in two processes, and on text that changes: found, rebuilt or named."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from dlmkit.data import checksums, packing
from dlmkit.data.corpora.pairs import PairsCorpus
from dlmkit.data.corpora.text import TextCorpus
from dlmkit.data.packing import Split, pack
from dlmkit.data.sources.text import Text
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.data.tokenizers.bpe import BPE
from dlmkit.data.tokenizers.bytes import Bytes
from dlmkit.data.tokenizers.characters import Characters
from toy_runs import MODEL, SMALL, dlmkit, metrics, text_corpus, text_data, trained


def corpus_of(tokenizer: Tokenizer | None = None, file: str = "t.txt") -> TextCorpus:
    if not Path(file).exists():
        text_corpus(Path(file), documents=200)
    corpus = TextCorpus(Text(file, "\n\n"), tokenizer or Bytes(), length=8, val_fraction=0.2, cache_dir="cache")
    corpus.prepare()
    return corpus


def content(corpus: TextCorpus) -> list[bytes]:
    both = (corpus.train_sequences, corpus.val_sequences)
    return [sequences.tokens(range(len(sequences))).tobytes() for sequences in both]


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def zero(path: Path, position: int, number: int = 2000) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes(number))


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "flipped bit": lambda path: flip(path, path.stat().st_size // 2),
    "flipped last bit": lambda path: flip(path, path.stat().st_size - 1, bit=7),
    "zeroed": lambda path: zero(path, path.stat().st_size // 3),
    "cut in half": lambda path: cut(path, path.stat().st_size // 2),
    "emptied": lambda path: cut(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "missing": Path.unlink,
    "garbage": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
}
FILES = ("train.arrow", "val.arrow", "statistics.json", "checksums.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_and_the_cache_rebuilt(name: str, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    corpus = corpus_of()
    before, statistics = content(corpus), corpus.statistics
    whole = (corpus.folder / name).read_bytes()
    DAMAGE[damage](corpus.folder / name)
    if (corpus.folder / name).is_file() and (corpus.folder / name).read_bytes() == whole:
        pytest.fail("no damage was done")
    capfd.readouterr()
    again = corpus_of()
    assert content(again) == before
    assert again.statistics == statistics
    said = capfd.readouterr().err
    if (name, damage) != ("checksums.json", "missing"):  # an earlier version's cache has none
        assert said.count("\n") == 1
        assert said.endswith(f": the cache {again.folder} is rebuilt\n")
    assert [path.name for path in again.folder.parent.iterdir()] == [again.folder.name]
    assert corpus_of().fingerprint == corpus.fingerprint
    assert capfd.readouterr().err == ""


def test_every_single_bit_matters() -> None:
    corpus = corpus_of()
    path = corpus.folder / "val.arrow"
    generator = np.random.default_rng(0)
    for position in generator.integers(0, path.stat().st_size, 100):
        bit = int(generator.integers(8))
        flip(path, int(position), bit)
        assert checksums.damage_in(corpus.folder) is not None
        flip(path, int(position), bit)
        assert checksums.damage_in(corpus.folder) is None


def test_a_large_file_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ends always, the middle at random: damage to one of 40 chunks is found in 8 of 38 openings on average."""
    monkeypatch.setattr(checksums, "CHUNK", 100)
    monkeypatch.setattr(checksums, "NUM_CHECKED", 10)
    path = Path("large")
    path.write_bytes(os.urandom(4000))
    expected = checksums.checksums_of(path)
    assert len(expected.crc32) == 40
    for position in (50, 3950):
        flip(path, position)
        assert checksums.damage_to(path, expected) is not None
        flip(path, position)
    assert all(checksums.damage_to(path, expected) is None for _ in range(50))
    flip(path, 2000)
    found = sum(checksums.damage_to(path, expected) is not None for _ in range(400))
    assert 40 < found < 140  # expected 84, standard deviation 8: a false alarm has a chance below 1e-6


def test_a_cache_of_an_earlier_version_is_used_and_gets_checksums(capfd: pytest.CaptureFixture[str]) -> None:
    corpus = corpus_of()
    before = content(corpus)
    (corpus.folder / "checksums.json").unlink()
    inode = corpus.folder.stat().st_ino
    assert content(corpus_of()) == before
    assert corpus.folder.stat().st_ino == inode
    assert (corpus.folder / "checksums.json").is_file()
    (corpus.folder / "checksums.json").unlink()
    cut(corpus.folder / "train.arrow", 3000)
    assert content(corpus_of()) == before
    assert "is rebuilt" in capfd.readouterr().err


@pytest.mark.parametrize("make", [lambda: BPE(262), Characters], ids=["bpe", "characters"])
@pytest.mark.parametrize("damage", ["flipped bit", "cut in half", "emptied", "garbage", "missing"])
def test_a_damaged_tokenizer_is_learned_again(
    make: Callable[[], Tokenizer], damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    fingerprint = corpus_of(make()).fingerprint
    (path,) = (one for one in Path("cache/tokenizers").rglob("*.json"))
    whole = path.read_bytes()
    DAMAGE[damage](path)
    capfd.readouterr()
    assert corpus_of(make()).fingerprint == fingerprint
    assert path.read_bytes() == whole
    assert ("is rebuilt" in capfd.readouterr().err) == (damage != "missing")


def test_a_tokenizer_of_an_earlier_version_has_no_checksum(capfd: pytest.CaptureFixture[str]) -> None:
    fingerprint = corpus_of(Characters()).fingerprint
    (sidecar,) = Path("cache/tokenizers").rglob("*.crc32")
    sidecar.unlink()
    assert corpus_of(Characters()).fingerprint == fingerprint
    assert capfd.readouterr().err == ""


def test_a_damaged_cache_does_not_stop_a_run() -> None:
    data = text_data(text_corpus(Path("t.txt")))
    command = ["train", *MODEL, *SMALL, *data, "data.cache_dir=cache", "budget.tokens=64"]
    assert dlmkit(*command, "hydra.run.dir=runs/one").code == 0
    (path,) = Path("cache").rglob("train.arrow")
    zero(path, 1000)
    outcome = dlmkit(*command, "hydra.run.dir=runs/two")
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith("dlmkit: train.arrow differs from what was written, near byte 0: the cache ")
    assert [row["train/loss"] for row in metrics(Path("runs/one")) if "train/loss" in row] == [
        row["train/loss"] for row in metrics(Path("runs/two")) if "train/loss" in row
    ]


def read_only(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def _use_as_nobody(length: int, answer: Connection) -> None:
    """Use the cache as a user without rights, where this one has all."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    corpus = TextCorpus(Text("t.txt", "\n\n"), Characters(), length, val_fraction=0.2, cache_dir="cache")
    try:
        corpus.prepare()
        answer.send(str(len(corpus.train_sequences)))
    except ValueError as error:
        answer.send(str(error))


def as_nobody(length: int) -> str:
    """Return the number of sequences, or the error."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    user = context.Process(target=_use_as_nobody, args=(length, theirs))
    user.start()
    user.join()
    assert user.exitcode == 0
    return str(mine.recv())


def test_a_read_only_cache_is_used_where_it_has_the_data(tmp_path: Path) -> None:
    corpus = corpus_of(Characters())
    (corpus.folder / "checksums.json").unlink()  # nor is one of an earlier version written to
    tmp_path.chmod(0o755)
    read_only(Path("cache"))
    try:
        assert as_nobody(8) == str(len(corpus.train_sequences))
        miss = as_nobody(16)
        assert miss.startswith("the cache 'cache/blocks' cannot be written (Permission denied)")
        assert miss.endswith("set data.cache_dir or DLMKIT_CACHE to a folder that can be written")
    finally:
        for path in [Path("cache"), *Path("cache").rglob("*")]:
            path.chmod(0o755)


def _prepare_there(barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    corpus = corpus_of(Characters())
    assert content(corpus)[0] == Path("expected").read_bytes()


@pytest.mark.parametrize("state", ["empty", "damaged"])
def test_four_processes_at_once(state: str) -> None:
    corpus = corpus_of(Characters())
    Path("expected").write_bytes(content(corpus)[0])
    (tokenizer,) = Path("cache/tokenizers").rglob("*.json")
    if state == "damaged":
        zero(corpus.folder / "train.arrow", 500, 100)
        zero(tokenizer, 0, 5)
    else:
        for path in sorted(Path("cache").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    racers = [context.Process(target=_prepare_there, args=(barrier,)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 4
    assert [path.name for path in corpus.folder.parent.iterdir()] == [corpus.folder.name]
    assert packing._damage_in(corpus.folder) is None


class Changing(Text):
    """A text whose file is appended to while it is read."""

    def documents(self):  # type: ignore[no-untyped-def]
        for number, text in enumerate(super().documents()):
            if number == 3:
                with self._paths[0].open("a") as file:
                    file.write("\n\nmore text")
            yield text


def test_a_corpus_that_changes_while_it_is_packed() -> None:
    text_corpus(Path("t.txt"))
    with pytest.raises(ValueError, match="the text changed while it was read: run again when nothing writes"):
        pack(Changing("t.txt", "\n\n"), Bytes(), Split(0.2, 0), 8, Path("cache/packed"))
    assert list(Path("cache").iterdir()) == []


def test_a_corpus_that_changes_while_a_tokenizer_is_learned() -> None:
    text_corpus(Path("t.txt"))
    corpus = TextCorpus(Changing("t.txt", "\n\n"), Characters(), length=8, val_fraction=0.2, cache_dir="cache")
    with pytest.raises(ValueError, match="the text changed while it was read"):
        corpus.prepare()
    assert [path for path in Path("cache").rglob("*") if path.is_file()] == []


def test_pairs_that_change_are_not_mixed() -> None:
    """Prompts and responses are read together, so that a line never has one of each version."""
    Path("p.jsonl").write_text("".join(f'{{"q": "q{i}", "a": "a{i}"}}\n' for i in range(40)))
    corpus = PairsCorpus("p.jsonl", None, "q", "a", "=", True, Bytes(), 16, val_fraction=0.3)
    assert all(pair.prompt[1:] == pair.response[1:] for pair in corpus.train_pairs + corpus.val_pairs)


def test_verifying_is_cheap() -> None:
    """About a second for each of the at most 1 GiB that is read."""
    path = Path("large")
    path.write_bytes(os.urandom(2**20) * 64)
    expected = checksums.checksums_of(path)
    began = time.perf_counter()
    assert checksums.damage_to(path, expected) is None
    assert time.perf_counter() - began < 2.0  # 64 MiB: 0.06 s on two slow cores


@pytest.mark.parametrize("table", ["a,b\n1,2\n", "", "\x00\x01garbage\nmore\n", "step,x\nmany,1\n"])
def test_a_table_that_is_none_of_a_runs(table: str) -> None:
    from dlmkit import runs

    run = trained("runs/x", steps=2)
    (run / "metrics.csv").write_text(table)
    if table:
        with pytest.raises(ValueError, match=r"metrics\.csv is no table of a run's curves"):
            runs.read_metrics(run, 2)
    outcome = dlmkit("report", "runs")
    assert (outcome.code, outcome.err) == (0, "")
    assert ("warning: runs/x/metrics.csv" in outcome.out) == bool(table)
