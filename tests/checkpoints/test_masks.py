"""The mask of an exported tokenizer is the one that was trained, whatever the tokenizer named before."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dlmkit as package
from dlmkit.types import NetworkInput
from toy_runs import SMALL, TOKENS, Outcome, dlmkit, text_corpus, text_data

GPT2 = ["backbone.config={model_type: gpt2, n_layer: 1, n_head: 2, n_embd: 16, n_positions: 24}"]
TOKENIZER = ["tokenizer=bpe", "tokenizer.vocab_size=270"]


def run(*overrides: str) -> Outcome:
    text = text_data(text_corpus(Path("text.txt"), documents=200))
    return dlmkit("train", *text, *SMALL, f"budget.tokens={2 * TOKENS}", *overrides)


@pytest.fixture
def pretrained() -> Path:
    """A causal GPT-2 with a tokenizer."""
    outcome = run(*GPT2, *TOKENIZER, "family=ar", "hydra.run.dir=ar")
    assert outcome.code == 0, outcome.err
    assert dlmkit("export", "ar", "pretrained").code == 0
    return Path("pretrained")


def adapt(*overrides: str) -> None:
    outcome = run(
        "experiment=adapt",
        "backbone.name=pretrained",
        "tokenizer=own",
        "backbone.bos=none",
        "hydra.run.dir=run",
        *overrides,
    )
    assert outcome.code == 0, outcome.err
    outcome = dlmkit("export", "run", "out")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("named", ["[MASK]", "another token", "no token"])
@pytest.mark.parametrize("mask", ["new", "one of its tokens"])
def test_plain_transformers_masks_with_the_trained_id(pretrained: Path, named: str, mask: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[MASK]"]})
    one, another = sorted(token for token in tokenizer.get_vocab() if len(token) == 2)[:2]
    tokenizer.mask_token = {"[MASK]": "[MASK]", "another token": another, "no token": None}[named]
    tokenizer.save_pretrained(pretrained)
    known = AutoTokenizer.from_pretrained(pretrained)
    adapt(f"tokenizer.mask={'new' if mask == 'new' else one}")

    mine, theirs = package.load("run"), AutoTokenizer.from_pretrained("out")
    back = package.load("out")
    assert mine.tokenizer is not None
    assert back.tokenizer is not None
    trained = mine.backbone.mask_id
    assert trained == (len(known) if mask == "new" else known.get_vocab()[one])
    assert theirs.mask_token_id == trained
    assert theirs.encode(theirs.mask_token, add_special_tokens=False) == [trained]
    assert back.backbone.mask_id == back.tokenizer.mask_id == trained
    assert back.tokenizer.vocab_size == mine.tokenizer.vocab_size
    assert back.tokenizer.encode("with the light") == mine.tokenizer.encode("with the light")

    ids = torch.tensor([[trained, *theirs.encode("the word", add_special_tokens=False)]])
    model = AutoModelForCausalLM.from_pretrained("out").eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1]
        own = mine.backbone(NetworkInput(ids, torch.zeros(1))).logits(torch.ones_like(ids, dtype=torch.bool))
    kept = torch.arange(logits.shape[-1]) != trained
    torch.testing.assert_close(own[1:, kept], logits[:, kept], rtol=1e-5, atol=1e-5)


def test_adapters_on_gpt2_are_quiet_and_right(pretrained: Path) -> None:
    """Its layers store [in, out]; the merged weights are those that were trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="(lightning|torch).*")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        adapt("backbone.lora.rank=2", "optimizer.lr=0.1")
        model = package.load("run")
    ids = torch.randint(250, (2, 9), generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained("out").eval()
    before = AutoModelForCausalLM.from_pretrained("pretrained").eval()
    with torch.no_grad():
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        mine = model.backbone(NetworkInput(ids, torch.zeros(2))).logits(everywhere).unflatten(0, ids.shape)[:, 1:]
        theirs = plain(input_ids=ids).logits[:, :-1]
    kept = torch.arange(mine.shape[-1]) != model.backbone.mask_id
    torch.testing.assert_close(mine[..., kept], theirs[..., kept], rtol=1e-4, atol=1e-5)
    name = "transformer.h.0.attn.c_attn.weight"
    assert not torch.equal(plain.state_dict()[name], before.state_dict()[name])


def test_adapted_without_its_run_points_to_adapt(pretrained: Path) -> None:
    outcome = run("family=adapted", "backbone.name=pretrained", "hydra.run.dir=run")
    assert outcome.code == 2
    assert "experiment=adapt backbone.name=pretrained" in outcome.line
    outcome = run("family=absorbing", "backbone.name=pretrained", "hydra.run.dir=run")
    assert outcome.code == 2
    assert "backbone.config=null" in outcome.line
    assert "experiment=adapt" in outcome.line
