"""Texts that end at the end of a document: rows leave the batch there, and nothing given is cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlmkit import LoadedModel
from dlmkit.data.tokenizers.characters import Characters
from dlmkit.generation import Event
from toy_models import BLOCK, toy_model

KINDS = ("ar", "block", "absorbing")
LENGTH = 24
LETTERS = "In thegod"


def model_of(kind: str, folder: Path) -> LoadedModel:
    """A model of so few tokens that nearly every text of `LENGTH` has an end."""
    tokenizer = Characters()
    tokenizer.fit(lambda: [LETTERS], folder)
    return toy_model(kind, tokenizer, LENGTH)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_end_at_the_first_end(kind: str, tmp_path: Path) -> None:
    model = model_of(kind, tmp_path)
    eos = model.text_tokenizer.eos_id
    prompts = ["In", "In the good"]
    whole = model.generate(prompts, num_samples=8, steps=12, seed=3)
    stopped = model.generate(prompts, num_samples=8, steps=12, seed=3, stop_at_eos=True)
    ended = 0
    for all_ids, ids, text, prompt in zip(whole.tokens, stopped.tokens, stopped.texts, 8 * [0] + 8 * [1], strict=True):
        given = len(prompts[prompt])
        end = all_ids.index(eos, given) + 1 if eos in all_ids[given:] else LENGTH
        assert ids == all_ids[:end]  # the same text, cut off
        assert text.startswith(prompts[prompt])
        assert text.endswith("<|eos|>") == (end < LENGTH or all_ids[-1] == eos)
        ended += end < LENGTH
    assert ended >= 8
    assert stopped.num_generated == [len(ids) - len(prompts[i // 8]) for i, ids in enumerate(stopped.tokens)]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_leave_the_batch_there(kind: str, tmp_path: Path) -> None:
    """A text that ends takes no more passes; those beside it go on."""
    model = model_of(kind, tmp_path)
    sizes: list[int] = []

    def watch(event: Event) -> None:
        sizes.append(len(event.rows))

    whole = model.generate(num_samples=12, steps=LENGTH, seed=1)
    stopped = model.generate(num_samples=12, steps=LENGTH, seed=1, stop_at_eos=True, on_step=watch)
    assert sizes[0] == 12
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 12
    assert sum(stopped.passes) < sum(whole.passes)
    for passes, ids in zip(stopped.passes, stopped.tokens, strict=True):
        if kind == "ar":
            assert passes == len(ids)
        elif kind == "block":
            assert passes <= -(-len(ids) // BLOCK) * BLOCK  # nothing of later blocks
    assert all(few <= many for few, many in zip(stopped.passes, whole.passes, strict=True))


def test_passes_do_not_depend_on_the_prompts_beside() -> None:
    """An autoregressive row whose prompt is longer waits, and counts no pass."""
    model = toy_model("ar", length=LENGTH)
    prompts = ["I", "In the beginning"]
    done = model.generate(prompts)
    assert done.passes == [LENGTH - 1, LENGTH - 16]
    alone = [model.generate(prompt) for prompt in prompts]
    assert [one.passes[0] for one in alone] == done.passes
    assert alone[0].tokens[0] == done.tokens[0]


def test_guidance_costs_two_passes(tmp_path: Path) -> None:
    """Where it decides one token a step, in any case."""
    model = model_of("absorbing", tmp_path)
    plain, guided = (
        model.generate("In", sampler="confidence", steps=LENGTH, guidance=scale).passes[0] for scale in (0.0, 1.0)
    )
    assert (plain, guided) == (LENGTH - 2, 2 * (LENGTH - 2))


def test_an_end_before_something_given_is_a_token_like_others(tmp_path: Path) -> None:
    model = model_of("absorbing", tmp_path)
    done = model.generate(infill="In[MASK:6]god[MASK:6]", num_samples=16, steps=6, stop_at_eos=True)
    inside = [text for text in done.texts if "<|eos|>" in text.partition("god")[0]]
    assert inside
    assert all(text.startswith("In") and "god" in text for text in done.texts)
    assert all("<|eos|>" not in text.partition("god")[2][:-7] for text in done.texts if text.count("god") == 1)
    assert any(text.partition("god")[2].endswith("<|eos|>") for text in done.texts)
    closed = model.generate(infill="In[MASK:6]god", num_samples=16, steps=6, stop_at_eos=True)
    assert closed.texts == model.generate(infill="In[MASK:6]god", num_samples=16, steps=6).texts
