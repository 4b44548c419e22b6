"""The recipes of DiffuGPT and DiffuLLaMA: sizes, batches and constants, without a weight in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from dlmkit.backbones.hf import HFBackbone
from dlmkit.config import compose

GPT2 = {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}

# name: configuration of the pretrained model, vocabulary with the mask, its id, parameters, length, global batch in
# blocks, blocks a device holds, steps, floating-point operations of the whole run (the README's figure)
RECIPES: dict[str, tuple[dict[str, Any], int, int, int, int, int, int, int, float]] = {
    "diffugpt_s": (GPT2, 50257, 10541, 124_439_808, 512, 256, 32, 1_000_000, 0.9e20),
    "diffugpt_m": (
        {**GPT2, "n_layer": 24, "n_head": 16, "n_embd": 1024},
        50258,
        50257,
        354_823_168 + 1024,
        1024,
        1280,
        160,
        160_000,
        4.8e20,
    ),
    "diffullama_7b": (LLAMA, 32000, 811, 6_738_415_616, 2048, 15_360, 60, 2067, 2.8e21),
}


@pytest.mark.parametrize("name", RECIPES)
def test_sizes_and_arithmetic(name):
    model, rows, mask_id, params, length, batch, micro, steps, flops = RECIPES[name]
    config = compose([f"experiment={name}"], Path("run"))
    assert (config.length, config.batch.size, config.batch.micro_size) == (length, batch, micro)
    assert config.num_steps == steps
    assert steps * batch * length == pytest.approx(config.budget.tokens, rel=1e-3)
    assert config.tokenizer.mask in (mask_id, "new")

    keywords: dict[str, Any] = OmegaConf.to_container(config.backbone, resolve=False)
    keywords.pop("_target_")
    own = {"vocab_size": rows, "mask_id": mask_id, "bos_id": 50256, "causal": False, "name": None, "config": model}
    with torch.device("meta"):
        backbone = HFBackbone(**{**keywords, **own, "attention": "sdpa"})
    assert backbone.num_params == params
    assert backbone.max_length >= length
    assert backbone.shift
    assert backbone.bos_id is None  # position 0 is given
    assert backbone.model.is_gradient_checkpointing
    total = backbone.flops_per_token(length, head_fraction=0.5) * config.budget.tokens
    assert total == pytest.approx(flops, rel=0.05)


@pytest.mark.parametrize("name", RECIPES)
def test_constants(name):
    """arXiv 2410.17891, section 4.1 and appendix B, and the public code."""
    config = compose([f"experiment={name}"], Path("run"))
    llama = name == "diffullama_7b"
    assert config.optimizer.lr == (2e-5 if llama else 3e-4)
    assert list(config.optimizer.betas) == ([0.9, 0.95] if llama else [0.9, 0.999])
    assert config.optimizer.weight_decay == (0.1 if llama else 0.0)
    assert config.lr_schedule.warmup_steps == (0 if llama else 2000)
    assert config.lr_schedule._target_.endswith("WarmupConstant" if llama else "WarmupCosine")
    assert ("annealing" in config.callbacks) == (not llama)
    if not llama:
        assert config.callbacks.annealing.anneal_steps == 10_000
    assert config.t_sampler._target_.endswith("IID")
    assert config.t_sampler.eps == 1e-3
    assert config.schedule._target_.endswith("Linear")
    assert config.trainer.precision == "bf16-mixed"
    assert config.trainer.gradient_clip_val == 1.0
    assert config.trainer.devices * config.trainer.num_nodes == (64 if llama else 8)


def test_the_mixture_of_diffullama():
    sources = compose(["experiment=diffullama_7b"], Path("run")).data.sources
    weights = {name: entry.weight for name, entry in sources.items()}
    assert weights == {"slimpajama": 0.693584, "starcoder": 0.306416}
    assert sum(weights.values()) == pytest.approx(1.0)
