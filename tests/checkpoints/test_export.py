"""From a run to a Hugging Face folder, and from any such folder to a model of dlmkit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dlmkit.checkpoints.load import load
from dlmkit.types import NetworkInput
from toy_runs import SMALL, TOKENS, dlmkit, text_corpus, text_data

LLAMA = [
    "backbone=llama",
    "backbone.config={num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 1, hidden_size: 16,"
    " intermediate_size: 24, max_position_embeddings: 16}",
]


def text_run(folder: str, *overrides: str) -> Path:
    return finished(folder, *LLAMA, *overrides)


def finished(folder: str, *overrides: str) -> Path:
    """Train two steps on text, without fail."""
    text = text_data(text_corpus(Path("text.txt"), documents=200))
    steps = f"budget.tokens={2 * TOKENS}"
    outcome = dlmkit("train", *text, *SMALL, steps, f"hydra.run.dir={folder}", *overrides)
    assert outcome.code == 0, outcome.err
    return Path(folder)


@pytest.mark.parametrize("family", ["absorbing", "ar"])
@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_run_opens_in_transformers_and_comes_back(family, tokenizer):
    size = ["tokenizer.vocab_size=270"] if tokenizer == "bpe" else []
    run = text_run("run", f"family={family}", f"tokenizer={tokenizer}", *size)
    outcome = dlmkit("export", "run", "out")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines()[0] == "out"

    mine, back = load(run), load(Path("out"))
    ids = torch.randint(250, (2, 8), generator=torch.Generator().manual_seed(0))
    where, t = torch.ones_like(ids, dtype=torch.bool), torch.zeros(2)
    model = AutoModelForCausalLM.from_pretrained("out").eval()
    with torch.no_grad():
        logits = mine.backbone(NetworkInput(ids, t)).logits(where)
        torch.testing.assert_close(back.backbone(NetworkInput(ids, t)).logits(where), logits, rtol=1e-6, atol=1e-6)
        with_bos = torch.cat([torch.full((2, 1), mine.backbone.bos_id), ids], dim=1)
        theirs = model(input_ids=with_bos).logits[:, :8].flatten(0, 1)
    kept = torch.arange(logits.shape[-1]) != mine.backbone.mask_id
    torch.testing.assert_close(theirs[:, kept], logits[:, kept], rtol=1e-5, atol=1e-5)
    assert model.config.is_causal == (family == "ar")
    assert back.backbone.causal == (family == "ar")

    samples = [dlmkit("sample", place, "--length", "8", "--steps", "4", "--json") for place in ("run", "out")]
    assert samples[0].code == samples[1].code == 0, samples[1].err
    assert json.loads(samples[0].out)["texts"] == json.loads(samples[1].out)["texts"]
    if tokenizer == "bpe":
        read = AutoTokenizer.from_pretrained("out")
        assert read.encode("with light") == mine.tokenizer.encode("with light")
        assert (read.mask_token_id, read.eos_token_id) == (mine.tokenizer.mask_id, mine.tokenizer.eos_id)


def test_an_exported_model_is_adapted_further():
    """An AR run, exported, is the pretrained model of an adaptation: its weights, one more pass of training."""
    text_run("ar", "family=ar", "tokenizer=bpe", "tokenizer.vocab_size=270")
    assert dlmkit("export", "ar", "pretrained").code == 0
    adapted = finished(
        "adapted",
        "experiment=adapt",
        "backbone.name=pretrained",
        "backbone.config=null",
        "tokenizer=own",
        'tokenizer.mask="[MASK]"',
        "optimizer.lr=0.0",
    )
    assert dlmkit("export", str(adapted), "diffusion").code == 0
    ar, diffusion = (AutoModelForCausalLM.from_pretrained(name) for name in ("pretrained", "diffusion"))
    torch.testing.assert_close(dict(ar.state_dict()), dict(diffusion.state_dict()), rtol=0, atol=0)
    assert (ar.config.is_causal, diffusion.config.is_causal) == (True, False)


def test_a_plain_causal_lm_samples_as_what_it_is():
    text_run("ar", "family=ar", "tokenizer=bpe", "tokenizer.vocab_size=270")
    assert dlmkit("export", "ar", "out").code == 0
    Path("out/dlmkit.yaml").unlink()
    Path("out/dlmkit_tokenizer.json").unlink()
    sampled = dlmkit("sample", "out", "--prompt", "with", "--length", "12")
    assert sampled.code == 0, sampled.err
    assert sampled.out.startswith("with")
    infill = dlmkit("sample", "out", "--infill", "a [MASK:3] b")
    assert (infill.code, "cannot fill in the middle" in infill.line) == (2, True)


def test_what_cannot_be_exported():
    dit = ["backbone.hidden_size=16", "backbone.num_layers=1", "backbone.num_heads=2", "backbone.cond_size=8"]
    data = ["data=markov", "data.num_train_sequences=64", "data.num_val_sequences=10"]
    overrides = [*SMALL, *data, "backbone=dit_tiny", *dit]
    outcome = dlmkit("train", *overrides, f"budget.tokens={TOKENS}", "hydra.run.dir=dit", "lr_schedule.warmup_steps=1")
    assert outcome.code == 0, outcome.err
    outcome = dlmkit("export", "dit", "out")
    assert (outcome.code, "only backbone=hf can be exported" in outcome.line) == (2, True)
    assert not Path("out").exists()
    text_run("run")
    Path("out").mkdir()
    Path("out/file").write_text("x")
    outcome = dlmkit("export", "run", "out")
    assert (outcome.code, "out is in use" in outcome.line) == (2, True)
    outcome = dlmkit("export", "nowhere", "other")
    assert (outcome.code, "nowhere" in outcome.line) == (2, True)
