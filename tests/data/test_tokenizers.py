"""Round trips, special tokens that no text can spell, saving, determinism and messages of every tokenizer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from data_helpers import make_documents, one_line
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dlmkit.data.tokenizers import Tokenizer, load_tokenizer
from dlmkit.data.tokenizers.bpe import BPE
from dlmkit.data.tokenizers.bytes import Bytes
from dlmkit.data.tokenizers.characters import Characters
from dlmkit.data.tokenizers.huggingface import HuggingFace

SPECIAL_WORDS = "a [MASK] <|eos|> <|endoftext|> </s> b"
TEXTS = ["light and water", "the evening  and the morning", SPECIAL_WORDS]


def save_pretrained(folder: Path, metaspace: bool = False, eos: str | None = "<|endoftext|>") -> Path:
    """Train a small Hugging Face tokenizer, GPT-2-like (bytes) or LLaMA-like (word starts marked)."""
    model = tokenizers.Tokenizer(models.BPE(byte_fallback=metaspace))
    model.pre_tokenizer = pre_tokenizers.Metaspace() if metaspace else pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.Metaspace() if metaspace else decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if not metaspace else list(map(chr, range(32, 127)))
    special = [eos] if eos else []
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    model.train_from_iterator(make_documents(50), trainer)
    PreTrainedTokenizerFast(tokenizer_object=model, eos_token=eos).save_pretrained(str(folder))
    return folder


def fitted_bpe(cache: Path, size: int = 300) -> BPE:
    bpe = BPE(size)
    bpe.fit(lambda: make_documents(100), cache)
    return bpe


def fitted_characters(cache: Path) -> Characters:
    characters = Characters()
    characters.fit(lambda: [*make_documents(100), *TEXTS], cache)
    return characters


MAKERS: dict[str, Callable[[Path], Tokenizer]] = {
    "bytes": lambda folder: Bytes(),
    "characters": fitted_characters,
    "bpe": fitted_bpe,
    "huggingface": lambda folder: HuggingFace(str(save_pretrained(folder / "hf"))),
    "metaspace": lambda folder: HuggingFace(str(save_pretrained(folder / "hf", metaspace=True))),
}


@pytest.fixture(params=MAKERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return MAKERS[request.param](tmp_path)


def test_text_over_the_alphabet_round_trips_and_batches_agree(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode(tokenizer.encode(text)) for text in TEXTS] == TEXTS
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == tokenizer.encode(text)


def test_no_text_spells_a_special_id(tokenizer: Tokenizer) -> None:
    ids = set(tokenizer.encode(SPECIAL_WORDS))
    assert not ids & {tokenizer.mask_id, tokenizer.eos_id}
    assert max(ids) < tokenizer.vocab_size
    assert max(tokenizer.mask_id, tokenizer.eos_id, tokenizer.bos_id) < tokenizer.vocab_size
    assert tokenizer.mask_id != tokenizer.eos_id


def test_special_ids_are_shown_or_skipped_and_words_keep_their_spaces(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a b a b")
    half = len(ids) // 2
    marked = [*ids[:half], tokenizer.mask_id, *ids[half:], tokenizer.eos_id]
    shown = tokenizer.decode(np.array(marked))
    assert shown.endswith("<|eos|>")
    assert shown.replace("[MASK]", "").replace("<|eos|>", "") == "a b a b"
    assert tokenizer.decode(marked, skip_special=True) == "a b a b"


def test_saved_tokenizer_loads_to_an_equal_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "run")
    before = tokenizer.fingerprint
    tokenizer.encode_batch(["light", "and water"])
    assert tokenizer.fingerprint == before  # encoding leaves no trace
    loaded = load_tokenizer(tmp_path / "run")
    assert type(loaded) is type(tokenizer)
    assert loaded.fingerprint == tokenizer.fingerprint
    assert loaded.encode(SPECIAL_WORDS) == tokenizer.encode(SPECIAL_WORDS)
    for name in ("vocab_size", "mask_id", "eos_id", "bos_id"):
        assert getattr(loaded, name) == getattr(tokenizer, name)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> BPE:
    return fitted_bpe(tmp_path_factory.mktemp("bpe"))


@given(text=st.text())
def test_bytes_and_bpe_round_trip_any_text(bpe: BPE, text: str) -> None:
    assert Bytes().decode(Bytes().encode(text)) == text
    assert bpe.decode(bpe.encode(text)) == text


def test_bytes_that_are_not_utf8_decode_all_the_same(bpe: BPE) -> None:
    assert "\ufffd" in Bytes().decode([0xC3, 257, 0xA9])
    assert bpe.decode(list(range(300))).endswith("<|eos|>[MASK]")


def test_unknown_characters_become_the_unknown_token(tmp_path: Path) -> None:
    characters = Characters()
    characters.fit(lambda: ["abc"], tmp_path)
    assert characters.encode("aZc\U0001f600") == [0, characters.unknown_id, 2, characters.unknown_id]
    assert characters.decode(characters.encode("aZc")) == "a\ufffdc"
    assert characters.vocab_size == 6


@pytest.mark.parametrize("make", [Characters, lambda: BPE(300)])
def test_fit_reads_the_cache_without_the_documents(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    def unread() -> list[str]:
        raise AssertionError("documents were read again")

    first, second = make(), make()
    first.fit(lambda: make_documents(100), tmp_path)
    second.fit(unread, tmp_path)
    assert first.fingerprint == second.fingerprint


def test_bpe_is_deterministic_across_processes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from dlmkit.data.tokenizers.bpe import BPE; bpe = BPE(320); "
        "bpe.fit(lambda: sys.argv[2].split('|'), Path(sys.argv[1])); print(bpe.fingerprint)"
    )
    path = os.pathsep.join(sys.path)
    found = {
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / str(i)), "|".join(make_documents(100))],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": str(i)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for i in range(2)
    }
    assert found == {fitted_bpe(tmp_path, 320).fingerprint + "\n"}


def test_bpe_compresses_and_uses_the_whole_vocabulary(tmp_path: Path) -> None:
    text = "\n".join(make_documents(100))
    bpe = fitted_bpe(tmp_path)
    assert len(bpe.encode(text)) < 0.7 * len(text.encode())
    assert bpe.vocab_size == 300
    assert (bpe.eos_id, bpe.mask_id) == (298, 299)


def test_fingerprints_tell_tokenizers_apart(tmp_path: Path) -> None:
    made = [Bytes(), fitted_characters(tmp_path), fitted_bpe(tmp_path, 300), fitted_bpe(tmp_path, 301)]
    folder = save_pretrained(tmp_path / "hf")
    made += [HuggingFace(str(folder)), HuggingFace(str(folder), mask="light"), HuggingFace(str(folder), eos="a")]
    assert len({tokenizer.fingerprint for tokenizer in made}) == len(made)


def test_huggingface_mask_new_or_existing(tmp_path: Path) -> None:
    folder = str(save_pretrained(tmp_path))
    new, by_name, by_id = HuggingFace(folder), HuggingFace(folder, mask="light"), HuggingFace(folder, mask=300)
    assert (new.mask_id, new.vocab_size) == (320, 321)
    assert (by_name.mask_id, by_name.vocab_size) == (by_name.pretrained.get_vocab()["light"], 320)
    assert by_id.mask_id == 300
    assert by_id.decode([300]) == "[MASK]"


def test_bad_input_is_explained_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size 257 is outside \[258") as error:
        BPE(257)
    one_line(error)
    with pytest.raises(ValueError, match=r"vocab_size = 5000 is more than .* set it to at most \d+") as error:
        fitted_bpe(tmp_path, 5000)
    one_line(error)
    assert not list(tmp_path.glob("*5000*"))
    folder = str(save_pretrained(tmp_path / "hf"))
    no_end = str(save_pretrained(tmp_path / "no_end", eos=None))
    for arguments, expected in (
        ((folder, "[NONE]"), r"tokenizer.mask = '\[NONE\]' is not a token"),
        ((folder, 320), r"tokenizer.mask = 320 is outside \[0, 320\)"),
        ((folder, "new", "</s>"), "tokenizer.eos = '</s>' is not a token"),
        ((folder, "<|endoftext|>"), "is also the end of documents"),
        ((no_end,), "set tokenizer.eos"),
        ((str(tmp_path / "hff"),), "nearest existing name is .*/hf'"),
    ):
        with pytest.raises(ValueError, match=expected) as error:
            HuggingFace(*arguments)
        one_line(error)
    with pytest.raises(ValueError, match=r"has no dlmkit_tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_hub_name_without_network_says_how_to_use_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"tokenizer\.name = 'nobody/nothing'") as error:
        HuggingFace("nobody/nothing")
    assert "hf download nobody/nothing --local-dir DIR" in one_line(error)
