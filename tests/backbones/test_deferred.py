"""Networks built without weights: what is made later is, number for number, what a usual build has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.deferred import DeferredWeights
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.hf import HFBackbone
from dlmkit.checkpoints.container import write
from dlmkit.checkpoints.load import load_backbone_weights

LLAMA: dict[str, Any] = {
    **{"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64, "tie_word_embeddings": False},
}
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16}
OPT: dict[str, Any] = {
    **{"model_type": "opt", "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "ffn_dim": 32},
    **{"max_position_embeddings": 32, "word_embed_proj_dim": 16},
}


def hf(config: dict[str, Any] | None = None, name: Path | None = None, vocab_size: int = 40, rank: int = 0) -> Backbone:
    lora = {"rank": rank, "alpha": 16, "dropout": 0.0, "train_embeddings": True}
    text = None if name is None else str(name)
    ids = {"vocab_size": vocab_size, "mask_id": vocab_size - 1, "bos_id": 0}
    kernels = {"attention": "sdpa", "attention_with_mask": None, "gradient_checkpointing": False}
    return HFBackbone(**ids, causal=False, shift=True, bos="prepend", **kernels, lora=lora, name=text, config=config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pretrained models: in one file, in several, with tied embeddings, and with names that leave the head out."""
    root = tmp_path_factory.mktemp("models")
    llama, gpt2 = hf(LLAMA), hf(GPT2)
    llama.model.save_pretrained(root / "one")
    llama.model.save_pretrained(root / "several", max_shard_size="20KB")
    gpt2.model.save_pretrained(root / "tied")
    gpt2.model.base_model.save_pretrained(root / "bare")
    return {path.name: path for path in root.iterdir()}


def builds(folders: dict[str, Path]) -> dict[str, Callable[[], Backbone]]:
    return {
        "dit": lambda: DiT(40, 39, 16, 32, 2, 2, 16),
        "tied dit": lambda: DiT(40, 39, 16, 32, 2, 2, 16, tied=True, time_conditioned=False),
        "llama": lambda: hf(LLAMA),
        "gpt2": lambda: hf(GPT2),
        "opt": lambda: hf(OPT),
        "adapters": lambda: hf(LLAMA, rank=4),
        "one file": lambda: hf(name=folders["one"]),
        "several files and new rows": lambda: hf(name=folders["several"], vocab_size=43),
        "tied and new rows": lambda: hf(name=folders["tied"], vocab_size=42),
        "names without the head": lambda: hf(name=folders["bare"], vocab_size=42),
        "adapters on a pretrained model": lambda: hf(name=folders["one"], vocab_size=43, rank=4),
    }


@pytest.mark.parametrize("case", builds({}))
def test_weights_made_later_are_those_of_a_usual_build(case: str, folders: dict[str, Path]) -> None:
    build = builds(folders)[case]
    torch.manual_seed(5)
    usual, state = build(), torch.get_rng_state()
    torch.manual_seed(5)
    with DeferredWeights() as deferred:
        later = build()
    assert torch.equal(torch.get_rng_state(), state)  # what is built next has its numbers too
    pairs = zip(usual.named_parameters(), later.named_parameters(), strict=True)
    for (name, expected), (same_name, parameter) in pairs:
        assert name == same_name
        assert parameter.is_meta
        assert parameter.requires_grad == expected.requires_grad
        assert torch.equal(deferred.make(parameter), expected), name
        assert torch.equal(deferred.make(parameter, slice(1, 3)), expected[1:3]), name
    for (name, expected), (same_name, buffer) in zip(usual.named_buffers(), later.named_buffers(), strict=True):
        assert name == same_name
        assert torch.equal(buffer, expected)


def test_weights_of_another_run_are_read_later_too(tmp_path: Path) -> None:
    network = hf(LLAMA)
    write(tmp_path / "a.ckpt", {"state_dict": {f"backbone.{k}": v for k, v in network.state_dict().items()}})
    with DeferredWeights() as deferred:
        later = hf(LLAMA)
    later.deferred = deferred
    load_backbone_weights(later, tmp_path / "a.ckpt")
    for (name, expected), (_, one) in zip(network.named_parameters(), later.named_parameters(), strict=True):
        assert torch.equal(deferred.make(one, slice(1, 3)), expected[1:3]), name


def test_files_that_do_not_fit_are_named_as_in_a_usual_build(folders: dict[str, Path], tmp_path: Path) -> None:
    hf({**LLAMA, "num_hidden_layers": 1}).model.save_pretrained(tmp_path / "short")
    (tmp_path / "short/config.json").write_text((folders["one"] / "config.json").read_text())
    with DeferredWeights(), pytest.raises(ValueError, match=r"short' lacks weight model\.layers\.1"):
        hf(name=tmp_path / "short")
    (tmp_path / "short/model.safetensors").write_bytes(b"no weights")
    with DeferredWeights(), pytest.raises(ValueError, match="holds damaged weights"):
        hf(name=tmp_path / "short")
