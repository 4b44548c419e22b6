"""Synthetic checkpoints in exactly the layouts that were released, brought in, opened and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from dlmkit.backbones.hf import HFBackbone
from dlmkit.checkpoints.load import load
from dlmkit.checkpoints.released import read_weights
from dlmkit.types import NetworkInput
from toy_runs import dlmkit

PROMPT = "abab"


def gpt2(rows: int) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=rows, n_layer=2, n_head=2, n_embd=16, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    )
    return AutoModelForCausalLM.from_config(config)


def byte_tokenizer(size: int, class_name: str, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of `size` ids, its bytes at the front and fillers behind; the class it claims is `class_name`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    for name in special.values():
        vocabulary.setdefault(name, len(vocabulary))
    while len(vocabulary) < size:
        vocabulary[f"<filler{len(vocabulary)}>"] = len(vocabulary)
    model = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=model, **special)


def diffugpt(folder: Path, rows: int, config_rows: int, with_head: bool) -> tuple[Any, Path]:
    """DiffuGPT as LLaMA-Factory saved it: wrapped names, half precision, a tokenizer class that only it has."""
    model = gpt2(rows).half()
    weights: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        wrapped = name.replace("transformer.wte.weight", "embed_tokens.weight")
        wrapped = wrapped.replace("transformer.", "denoise_model.")
        weights[wrapped] = value.clone()
    if with_head:
        weights["lm_head.weight"] = weights["embed_tokens.weight"].clone()
    weights["denoise_model.h.0.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)  # an old buffer
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    config = model.config.to_dict()
    config.update(
        vocab_size=config_rows,
        architectures=["DiscreteDiffusionModel"],
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 24}},
    )
    (folder / "config.json").write_text(json.dumps(config))
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    if rows == 50258:
        special["mask_token"] = "[¨M¨]"
    tokenizer = byte_tokenizer(50257, "GPT2TokenizerFast", bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    if rows == 50258:
        tokenizer.add_special_tokens({"mask_token": "[¨M¨]"})
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "MaskTokenWrapper"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    return model, folder


def diffullama(folder: Path) -> tuple[Any, Path]:
    """DiffuLLaMA: LLaMA's own names, in three shards with an index, an untied head, bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    folder.mkdir()
    names = sorted(model.state_dict())
    weight_map = {}
    for shard in range(3):
        file = f"model-0000{shard + 1}-of-00003.safetensors"
        save_file({name: model.state_dict()[name].clone() for name in names[shard::3]}, folder / file)
        weight_map |= dict.fromkeys(names[shard::3], file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    byte_tokenizer(32000, "LlamaTokenizer", bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"mask_token": "ти", "bos_token": "<s>", "eos_token": "</s>"})
    )
    return model, folder


RELEASES: dict[str, tuple[Callable[[Path], tuple[Any, Path]], int, int, int]] = {
    "diffugpt-s": (lambda folder: diffugpt(folder, 50257, 50257, with_head=False), 10541, 50257, 24),
    "diffugpt-m": (lambda folder: diffugpt(folder, 50258, 50257, with_head=True), 50257, 50258, 24),
    "diffullama": (diffullama, 811, 32000, 2048),
}


@pytest.mark.parametrize("name", RELEASES)
def test_import(name):
    make, mask_id, rows, length = RELEASES[name]
    original, source = make(Path("published"))
    outcome = dlmkit("import", str(source), "mine")
    assert outcome.code == 0, outcome.err
    assert not list(Path().glob(".mine*"))

    run = load(Path("mine"))
    assert isinstance(run.backbone, HFBackbone)
    assert (run.backbone.mask_id, run.backbone.vocab_size) == (mask_id, rows)
    assert (run.config.length, run.backbone.shift, run.backbone.bos_id, run.backbone.causal) == (
        length,
        True,
        None,
        False,
    )
    assert run.tokenizer is not None
    assert run.tokenizer.mask_id == mask_id

    ids = torch.randint(256, (2, 9), generator=torch.Generator().manual_seed(0))
    original.float().config.is_causal = False
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        mine = run.backbone(NetworkInput(ids, torch.zeros(2))).logits(everywhere).unflatten(0, ids.shape)
        reference = original.eval()(input_ids=ids).logits
    kept = torch.arange(rows) != mask_id
    torch.testing.assert_close(mine[:, 1:, kept], reference[:, :-1, kept], rtol=1e-5, atol=1e-5)
    assert (mine[..., mask_id] == float("-inf")).all()

    opened = AutoModelForCausalLM.from_pretrained("mine", dtype=torch.float32)
    assert opened.config.is_causal is False
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=ids).logits, reference, rtol=1e-5, atol=1e-5)
    assert AutoTokenizer.from_pretrained("mine").encode(PROMPT, add_special_tokens=False) == run.tokenizer.encode(
        PROMPT
    )

    sampled = dlmkit("sample", "mine", "--prompt", PROMPT, "--length", "8", "--steps", "2", "--json")
    assert sampled.code == 0, sampled.err


def test_bidirectional_after_import():
    _, source = RELEASES["diffugpt-s"][0](Path("published"))
    assert dlmkit("import", str(source), "mine").code == 0
    model = AutoModelForCausalLM.from_pretrained("mine", dtype=torch.float32).eval()
    ids = torch.arange(6)[None]
    changed = ids.clone()
    changed[0, -1] = 77
    with torch.no_grad():
        moved = (model(input_ids=ids).logits != model(input_ids=changed).logits).any(-1)[0]
    assert moved.all()


def spoil(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return apply


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


BAD = {
    "a weight is missing": (
        spoil(lambda w: w.__delitem__("denoise_model.ln_f.bias")),
        "lacks weight transformer.ln_f",
    ),
    "a weight too many": (
        spoil(lambda w: w.update({"denoise_model.h.7.ln_1.bias": torch.zeros(16)})),
        "has an unexpected weight transformer.h.7.ln_1.bias",
    ),
    "another shape": (spoil(lambda w: w.update({"denoise_model.ln_f.bias": torch.zeros(3)})), "shape (3,)"),
    "no embedding": (spoil(lambda w: w.__delitem__("embed_tokens.weight")), "lacks the token embedding"),
    "truncated": (truncate, "is damaged"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "holds no *.safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "another family": (
        lambda folder: (folder / "config.json").write_text('{"model_type": "t5"}'),
        "model_type 't5'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    change, message = BAD[case]
    _, source = RELEASES["diffugpt-s"][0](Path("published"))
    change(source)
    outcome = dlmkit("import", str(source), "mine")
    assert outcome.code == 2
    assert message in outcome.line
    assert sorted(path.name for path in Path().iterdir()) == ["published"]  # nothing half-written


def test_a_missing_shard():
    _, source = diffullama(Path("published"))
    (source / "model-00002-of-00003.safetensors").unlink()
    outcome = dlmkit("import", str(source), "mine")
    assert outcome.code == 2
    assert "names model-00002-of-00003.safetensors, which is not there" in outcome.line


def test_names_and_places():
    unknown = dlmkit("import", "diffugpt-l", "mine")
    assert (unknown.code, "diffugpt-s, diffugpt-m, diffullama" in unknown.line) == (2, True)
    offline = dlmkit("import", "diffugpt-s", "mine")
    assert offline.code == 2
    assert "hf download diffusionfamily/diffugpt-s" in offline.line
    Path("mine").mkdir()
    Path("mine/file").write_text("x")
    used = dlmkit("import", "diffugpt-s", "mine")
    assert (used.code, "mine is in use" in used.line) == (2, True)


def test_bin_files_are_read(tmp_path):
    _, source = RELEASES["diffugpt-s"][0](Path("published"))
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(weights, source / "pytorch_model.bin")
    assert set(read_weights(source)) == set(weights)
    assert dlmkit("import", str(source), "mine").code == 0
