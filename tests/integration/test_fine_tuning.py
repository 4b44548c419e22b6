"""Fine-tuning on prompts with responses, whole and by adapters: what is trained, saved, resumed, merged and scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from yaml import safe_load as yaml

from dlmkit.callbacks.exact_match import answer_of
from dlmkit.checkpoints.container import write
from dlmkit.checkpoints.load import load
from dlmkit.runs.contents import foreign_entry
from dlmkit.types import NetworkInput
from toy_runs import Outcome, checkpoint, curve, dlmkit, stop_at, summary, weights

SMALL = [
    "length=24",
    "batch.size=4",
    "lr_schedule.warmup_steps=1",
    "validation.every_steps=2",
    "validation.num_times=2",
    "trainer.log_every_n_steps=1",
    "callbacks.exact_match.num_steps=4",
    "trainer.accelerator=cpu",
]
SEPARATOR = r"data.source.separator='\n\n'"
LORA = ["backbone.lora.rank=2", "backbone.lora.alpha=4"]


@pytest.fixture
def pretrained() -> Path:
    """A tiny LLaMA with a tokenizer, as a causal LM that a user has."""
    Path("text.txt").write_text("\n\n".join(f"{i} and {i} makes {2 * i} #### {2 * i}" for i in range(300)))
    config = (
        "backbone.config={num_hidden_layers: 1, num_attention_heads: 2, num_key_value_heads: 2, hidden_size: 16,"
        " intermediate_size: 24, max_position_embeddings: 64, tie_word_embeddings: false}"
    )
    overrides = [
        "family=ar",
        "backbone=llama",
        config,
        "data=text",
        "data.source.files=text.txt",
        "length=24",
        SEPARATOR,
    ]
    small = ["tokenizer.vocab_size=270", "batch.size=4", "budget.tokens=96", "lr_schedule.warmup_steps=1"]
    outcome = dlmkit("train", *overrides, *small, "hydra.run.dir=ar")
    assert outcome.code == 0, outcome.err
    assert dlmkit("export", "ar", "pretrained").code == 0
    return Path("pretrained")


@pytest.fixture
def pairs() -> Path:
    rows = [{"question": f"{i} + {i}", "answer": f"so #### {2 * i}"} for i in range(40)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return Path("pairs.jsonl")


def tune(run_dir: str, *overrides: str, steps: int = 4) -> Outcome:
    return dlmkit(
        "train",
        "experiment=gsm8k",
        "data.files=pairs.jsonl",
        "backbone.name=pretrained",
        "data.separator='>>'",
        "data.val_fraction=0.2",
        f"budget.tokens={steps * 4 * 24}",
        f"hydra.run.dir={run_dir}",
        *SMALL,
        *overrides,
    )


def test_exact_match_is_logged_and_prompts_are_given(pretrained, pairs):
    outcome = tune("run")
    assert outcome.code == 0, outcome.err
    record = summary(Path("run"))
    assert record["status"] == "finished"
    assert record["val_bpb"] is None
    assert curve(Path("run"), "val/exact_match")[-1][1] in {i / 64 for i in range(65)} | {0.0}


def test_answers():
    assert answer_of("16 - 3 = 13 #### 1,234 ", "####") == "1234"
    assert answer_of("#### 3 #### 4", "####") == "4"
    assert answer_of("no marker", "####") == ""


def test_a_run_needs_its_pretrained_folder_no_more(pretrained, pairs):
    """All weights are in its checkpoint, and so is what the network is made of: it samples and exports as before."""
    assert tune("run").code == 0
    request = ("sample", "run", "--prompt", "1 + 1", "--steps", "4", "--num-samples", "2")
    before = dlmkit(*request)
    assert dlmkit("export", "run", "before").code == 0
    assert before.code == 0, before.err
    shutil.rmtree(pretrained)
    assert dlmkit(*request).out == before.out
    assert dlmkit("export", "run", "after").code == 0
    for file in sorted(Path("before").iterdir()):
        assert file.read_bytes() == (Path("after") / file.name).read_bytes(), file.name


@pytest.mark.parametrize("network", ["{_target_: os.system, command: touch harmed}", "{n_embd: '${oc.env:HOME}'}"])
def test_a_foreign_network_in_a_checkpoint_is_not_called(pretrained, pairs, network):
    assert tune("run").code == 0
    content = checkpoint(Path("run"))
    write(Path("run/checkpoints/last.ckpt"), {**content, "settings": {"block_size": None, "network": yaml(network)}})
    outcome = dlmkit("sample", "run", "--num-samples", "1", "--steps", "1")
    assert outcome.code == 2
    assert "settings.network" in outcome.line
    assert not Path("harmed").exists()


def test_adapters(pretrained, pairs):
    """Only adapters and embeddings are trained and saved; the run reads back, resumes and exports merged."""
    assert tune("whole", *LORA).code == 0
    assert foreign_entry(Path("whole")) is None
    saved = weights(Path("whole"))
    assert saved
    assert all("lora_" in name or "embed_tokens" in name for name in saved)
    run = load(Path("whole"))
    trained = {name for name, parameter in run.backbone.named_parameters() if parameter.requires_grad}
    assert {f"backbone.{name}" for name in trained} == set(saved)
    before = AutoModelForCausalLM.from_pretrained(pretrained).state_dict()
    parameters = dict(run.backbone.named_parameters())
    frozen = {name.removeprefix("model.").replace("base_layer.", ""): value for name, value in parameters.items()}
    for name in ("model.layers.0.mlp.up_proj.weight", "lm_head.weight", "model.norm.weight"):
        rows = before[name].shape[0]
        torch.testing.assert_close(frozen[name][:rows], before[name])
    assert any(bool(value.abs().sum() > 0) for name, value in saved.items() if "lora_B" in name)

    assert tune("parts", *LORA, stop_at(2)).code == 130
    assert tune("parts", *LORA, "if_exists=resume").code == 0
    torch.testing.assert_close(weights(Path("parts")), saved, rtol=0, atol=0)
    assert checkpoint(Path("parts"))["global_step"] == 4

    outcome = dlmkit("export", "whole", "merged")
    assert outcome.code == 0, outcome.err
    model = AutoModelForCausalLM.from_pretrained("merged").eval()
    assert not [name for name in model.state_dict() if "lora" in name]
    ids = torch.randint(250, (2, 9), generator=torch.Generator().manual_seed(0))
    where = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        mine = run.backbone(NetworkInput(ids, torch.zeros(2))).logits(where).unflatten(0, ids.shape)[:, 1:]
        theirs = model(input_ids=ids).logits[:, :-1]
    kept = torch.arange(mine.shape[-1]) != run.backbone.mask_id
    torch.testing.assert_close(theirs[..., kept], mine[..., kept], rtol=1e-4, atol=1e-5)


def test_adapters_on_four_bits(pretrained, pairs):
    """As above: trained, resumed to the bit, sampled, and exported with a line on what the weights are."""
    pytest.importorskip("torchao", reason="the extra `quantized` is not installed")
    settings = [*LORA, "backbone.lora.quantize=4bit", "optimizer=adamw_8bit"]
    assert tune("whole", *settings).code == 0
    saved = weights(Path("whole"))
    assert all("lora_" in name or "embed_tokens" in name for name in saved)
    assert summary(Path("whole"))["params"] == load(Path("whole")).backbone.num_params
    assert tune("parts", *settings, stop_at(2)).code == 130
    assert tune("parts", *settings, "if_exists=resume").code == 0
    torch.testing.assert_close(weights(Path("parts")), saved, rtol=0, atol=0)
    outcome = dlmkit("sample", "whole", "--prompt", "1 + 1", "--steps", "2", "--num-samples", "1")
    assert outcome.code == 0, outcome.err

    network = load(Path("whole")).backbone
    outcome = dlmkit("export", "whole", "merged")
    assert outcome.code == 0, outcome.err
    assert "written as the float32 numbers" in outcome.err
    exported = load(Path("merged")).backbone
    x = torch.randint(250, (2, 9), generator=torch.Generator().manual_seed(0))
    where = torch.ones_like(x, dtype=torch.bool)
    with torch.no_grad():
        one, other = (net(NetworkInput(x, torch.zeros(2))).logits(where) for net in (network, exported))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_four_bits_that_cannot_be_are_refused(pretrained, pairs):
    pytest.importorskip("torchao", reason="the extra `quantized` is not installed")
    four = "backbone.lora.quantize=4bit"
    for overrides, message in (
        ([four], "with rank 0"),
        ([*LORA, four, "strategy=fsdp2"], "backbone.lora.quantize=4bit packs numbers in blocks"),
        ([*LORA, "backbone.lora.quantize=8bit"], "backbone.lora.quantize '8bit'"),
    ):
        outcome = tune("run", *overrides)
        assert outcome.code == 2, overrides
        assert message in outcome.line
        assert not Path("run").exists()


def test_what_is_refused(pretrained, pairs):
    for overrides, message in (
        (["backbone.lora.rank=-1"], "rank -1"),
        ([*LORA, "backbone.lora.dropout=1.0"], "dropout 1.0"),
        (["backbone.name=nowhere"], "tokenizer.name = 'nowhere' is neither"),
        (["data.files=nothing.jsonl"], "no file matches"),
        (["ar_weight=-1.0"], "ar_weight -1.0"),
    ):
        outcome = tune("run", *overrides)
        assert outcome.code == 2, overrides
        assert message in outcome.line or message in outcome.err
