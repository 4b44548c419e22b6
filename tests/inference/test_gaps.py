"""Texts with gaps: what is given survives to the letter, and a gap's text is read where it stands."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.data.tokenizers.bytes import Bytes
from dlmkit.inference.texts import completed_text
from dlmkit.requests import GAP, Request, RequestBuilder
from toy_models import tokenizers_of, toy_model

KINDS = ("bytes", "characters", "bpe", "hf byte-level", "hf metaspace", "hf llama")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    found = tokenizers_of(tmp_path_factory.mktemp("tokenizers"))
    assert tuple(found) == KINDS
    return found


TEXTS = [
    "In the [MASK:2] God",
    "In the[MASK:2]God",
    " In  the  [MASK:3]  God  ",
    "\n\nIn\n[MASK:2]\n\n God\t[MASK:1]\r\n",
    "[MASK:2]God[MASK:3]",
    "the 😀[MASK:2]😀[MASK:1]👩‍👩‍👧",
    "e\u0301[MASK:2]\u0301a\u0308[MASK:1]\u0308",
    "ﬁ Å[MASK:2]한글[MASK:2]\u202eאב",
    "a[MASK:<=3]b[MASK:0]c[MASK:<=0]d[MASK:2][MASK:2]e",
    "the </s>[MASK:2]<|eos|> [MASK:1] <unk>▁God",
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_given_survives_to_the_letter(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    model = toy_model(tokenizer=tokenizers[kind], length=40)
    for text, completed in zip(TEXTS, model.generate(infill=TEXTS, steps=3).texts, strict=True):
        pattern = "(?s:.*)".join(map(re.escape, re.split(r"\[MASK:(?:<=)?\d+\]", text)))
        assert re.fullmatch(pattern, completed), (text, completed)
        assert "[MASK" not in completed


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_survives_too(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    model = toy_model(tokenizer=tokenizers[kind], length=40)
    prompts = [" In  the ", "God\n", "é😀"]
    for prompt, text in zip(prompts, model.generate(prompts, steps=3).texts, strict=True):
        assert text.startswith(prompt)


WHOLE = [  # text with a gap, what it is filled with
    ("In the{} God", " beginning"),
    ("In{} beginning", " the"),
    ("In the\n{}God created", "the "),
    ("the{}. And", " God"),
    ("In the {}God", "the"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_gap_that_is_filled_with_the_right_tokens_gives_the_text(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    """Pieces around a gap are encoded as they are inside a text, and the gap is decoded as it is there."""
    tokenizer = tokenizers[kind]
    for frame, word in WHOLE:
        ids = tokenizer.encode_inside(word)
        request = RequestBuilder(True, tokenizer.eos_id).infill(frame.format(f"[MASK:{len(ids)}]"), tokenizer)
        filled = iter(ids)
        tokens = [token if fixed else next(filled) for token, fixed in zip(request.tokens, request.fixed, strict=True)]
        done = completed_text(request, tokens, tokenizer)
        assert (done.text, done.num_generated) == (frame.format(word), len(ids))
        if "\n" not in frame or kind != "hf metaspace":  # which has no token for a line's end
            assert tokenizer.decode(tokens) == frame.format(word), "no space was added or lost in the tokens either"


def test_no_space_is_put_before_what_follows_a_gap(tokenizers: dict[str, Tokenizer]) -> None:
    """As SentencePiece does at the start of whatever it encodes."""
    for kind in ("hf metaspace", "hf llama"):
        tokenizer = tokenizers[kind]
        assert tokenizer.decode_ordinary(tokenizer.encode("God"), first=False) == " God"
        assert tokenizer.decode_ordinary(tokenizer.encode_inside("God"), first=False) == "God"
        assert tokenizer.encode_inside(" God") == tokenizer.encode("God")


def filled(text: str, gaps: list[list[int]], tokenizer: Tokenizer) -> tuple[Request, list[int]]:
    request = RequestBuilder(True, tokenizer.eos_id).infill(text, tokenizer)
    ids = iter([token for gap in gaps for token in gap])
    return request, [token if fixed else next(ids) for token, fixed in zip(request.tokens, request.fixed, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bounded_gap_ends_at_its_first_end(kind: str, tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers[kind]
    eos, the = tokenizer.eos_id, tokenizer.encode_inside("e")
    assert len(the) == 1
    request, tokens = filled("a[MASK:<=4]b[MASK:3]c", [[*the, eos, *the, eos], [*the, eos, *the]], tokenizer)
    done = completed_text(request, tokens, tokenizer)
    assert done.text == "aeb" + "e<|eos|>e" + "c"  # a gap of known length keeps all its tokens
    assert done.num_generated == 1 + 3
    assert len(done.tokens) == len(tokens) - 3


def test_padding_ends_a_bounded_gap(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["hf llama"]
    assert tokenizer.pad_id is None
    tokenizer.pretrained.pad_token = "<unk>"  # type: ignore[attr-defined]
    assert tokenizer.pad_id == 0
    request, tokens = filled("a[MASK:<=3]b", [[*tokenizer.encode_inside("e"), 0, 300]], tokenizer)
    assert completed_text(request, tokens, tokenizer).text == "aeb"
    tokenizer.pretrained.pad_token = None  # type: ignore[attr-defined]


def test_a_letter_may_lie_in_two_gaps(tokenizers: dict[str, Tokenizer]) -> None:
    request, tokens = filled("a[MASK:2][MASK:<=4]b", [list("😀".encode()), [256, 65]], tokenizers["bytes"])
    assert completed_text(request, tokens, tokenizers["bytes"]).text == "a😀b"


def test_part_of_a_letter_does_not_touch_what_is_given(tokenizers: dict[str, Tokenizer]) -> None:
    request, tokens = filled("é[MASK:1]é", [list("😀".encode()[:1])], tokenizers["bytes"])
    assert completed_text(request, tokens, tokenizers["bytes"]).text == "é\ufffdé"


def test_a_network_without_a_first_prediction_gets_a_start(tokenizers: dict[str, Tokenizer]) -> None:
    model = toy_model(bos=False)
    (text,) = model.generate(infill="[MASK:2]God", steps=2).texts
    assert text.startswith("<|eos|>")
    assert text.endswith("God")


def test_masks_are_gaps_to_the_sampler_and_pieces_cover_all(tokenizers: dict[str, Tokenizer]) -> None:
    for text in TEXTS:
        request = RequestBuilder(True, 256).infill(text, tokenizers["bytes"])
        assert sum(piece.num_tokens for piece in request.pieces) == len(request.tokens)
        assert len(request.tokens) - sum(request.fixed) == sum(int(gap[2]) for gap in GAP.finditer(text))


@pytest.mark.parametrize(
    "text", ["a [MASK:<4] b", "a [MASK:<= 4] b", "a [MASK:<=x] b", "a [mask] b", "a [MASK:-1]", "a"]
)
def test_what_is_no_gap_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no gap.*\[MASK:"):
        RequestBuilder(True, 256).infill(text, Bytes())


def test_a_request_of_tokens_alone_is_decoded_whole() -> None:
    tokenizer = Bytes()
    request = RequestBuilder(True, 256).prompt(tokenizer.encode("In "), 6)
    done = completed_text(replace(request, tokens=[73, 110, 32, 256, 65, 66]), [73, 110, 32, 256, 65, 66], tokenizer)
    assert (done.text, done.num_generated) == ("In <|eos|>AB", 3)


def test_half_of_a_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        toy_model().generate("a\ud800", steps=1)


def test_old_keywords_are_refused_with_the_new_ones() -> None:
    with pytest.raises(ValueError, match="num_steps is now steps: write steps=3"):
        toy_model().generate("a", num_steps=3)
    with pytest.raises(ValueError, match="infill with prompts or length"):
        toy_model().generate("a", infill="a[MASK:2]")
