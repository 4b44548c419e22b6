"""A network that two processes hold in parts: never whole on one of them, and equal to a whole one."""

from __future__ import annotations

import copy
import ctypes
import gc
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import AutoConfig, AutoModelForCausalLM

from dlmkit.backbones.base import Backbone
from dlmkit.backbones.deferred import DeferredWeights
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.hf import HFBackbone
from dlmkit.training.sharding import DATA, TENSOR, gathered, shard, total_norm
from dlmkit.types import NetworkInput
from networks import LLAMA, SIZES
from ranks import on_ranks, train_on_ranks
from toy_runs import SMALL, TOKENS, dlmkit, summary, weights

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")

TENSOR_PARALLEL = ("gemma2", "gpt_neox", "granite", "llama", "mistral", "olmo", "phi", "qwen2", "smollm3", "starcoder2")
WITHOUT_PLAN = ("falcon", "gemma3_text", "gpt2", "olmo2", "opt", "phi3", "qwen3")
V = 40


def hf(model_type: str = "llama", name: str | None = None, **config: object) -> HFBackbone:
    ids = {"vocab_size": V, "mask_id": V - 1, "bos_id": 0, "causal": False, "shift": True, "bos": "prepend"}
    kernels = {"attention": "eager", "attention_with_mask": None, "gradient_checkpointing": False}
    new = None if name else {"model_type": model_type, **config}
    return HFBackbone(**ids, **kernels, lora={"rank": 0}, name=name, config=new)


def mesh_of(data: int, tensor: int) -> DeviceMesh:
    dist.init_process_group("gloo")
    return init_device_mesh("cpu", (data, tensor), mesh_dim_names=(DATA, TENSOR))


def test_families_with_a_plan_compute_with_two_what_they_compute_with_one() -> None:
    """Log-probabilities and every gradient, of weights that are made in parts."""
    assert {*TENSOR_PARALLEL, *WITHOUT_PLAN} == set(SIZES)

    def work(rank: int) -> None:
        mesh = mesh_of(1, 2)
        for family in TENSOR_PARALLEL:
            sizes = {**SIZES[family]}
            if "num_key_value_heads" in sizes:
                sizes["num_key_value_heads"] = 2
            assert_same_network(lambda family=family, sizes=sizes: hf(family, **sizes), mesh)

    on_ranks(work)


def test_a_sharded_network_keeps_the_keys_of_a_prefix() -> None:
    """`prefill` may be the first that is asked of it; what follows is predicted as by the whole network."""

    def work(rank: int) -> None:
        tokens, t = torch.randint(V, (2, 6), generator=torch.Generator().manual_seed(0)), torch.ones(2).double()
        for data, tensor in ((2, 1), (1, 2)):
            mesh = (
                mesh_of(data, tensor) if data == 2 else init_device_mesh("cpu", (1, 2), mesh_dim_names=(DATA, TENSOR))
            )
            torch.manual_seed(3)
            whole = hf("llama", **{**LLAMA, "num_key_value_heads": 2}).eval()
            split = copy.deepcopy(whole)
            shard(split, mesh, torch.device("cpu"), cpu_offload=False)
            with torch.no_grad():
                expected, found = (
                    network(NetworkInput(tokens[:, 3:], t, cache=network.prefill(tokens[:, :3], 3))).hidden
                    for network in (whole, split)
                )
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    on_ranks(work)


def assert_same_network(build, mesh: DeviceMesh) -> None:
    torch.manual_seed(3)
    whole = build()
    torch.manual_seed(3)
    with DeferredWeights() as deferred:
        split = build()
    split.deferred = deferred
    shard(split, mesh, torch.device("cpu"), cpu_offload=False)
    tokens = torch.randint(V - 1, (2, 9), generator=torch.Generator().manual_seed(0))
    values = []
    for network in (whole, split):
        inputs = NetworkInput(tokens, torch.full((2,), 0.5, dtype=torch.float64))
        values.append(network(inputs).token_log_prob(tokens, torch.ones_like(tokens, dtype=torch.bool)))
        values[-1].sum().backward()
    torch.testing.assert_close(values[1], values[0], rtol=1e-4, atol=1e-5)
    for (name, expected), (_, one) in zip(whole.named_parameters(), split.named_parameters(), strict=True):
        torch.testing.assert_close(gathered(one.grad), expected.grad, rtol=1e-3, atol=1e-4, msg=name)
    norms = [total_norm([one.grad for one in network.parameters()]) for network in (whole, split)]
    torch.testing.assert_close(norms[1], norms[0], rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", WITHOUT_PLAN)
def test_families_without_a_plan_are_refused(family: str) -> None:
    network = hf(family, **SIZES[family])
    with pytest.raises(ValueError, match=rf"'{family}' has no plan .*tensor_parallel_size=1"):
        network.tensor_parallel_plan(2)


def test_networks_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="does not divide the model's num_key_value_heads 1"):
        hf(**LLAMA).tensor_parallel_plan(2)
    with pytest.raises(ValueError, match=r"backbone=dit has no plan .* backbone=hf"):
        DiT(V, V - 1, 16, 32, 2, 2, 16).tensor_parallel_plan(2)


# Memory ----------------------------------------------------------------------------------------------------------

SHAPE = {
    **{"num_hidden_layers": 16, "num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 512},
    **{"intermediate_size": 1408, "max_position_embeddings": 64, "tie_word_embeddings": False},
}
"""51 million parameters, 205 MB."""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of resident memory")
def test_a_network_is_never_whole_on_one_process(tmp_path: Path) -> None:
    """Built from scratch, or from a pretrained model's files, each of two processes takes half of it at its peak."""
    config = AutoConfig.for_model("llama", vocab_size=V, **SHAPE)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)

    def work(rank: int) -> None:
        mesh = mesh_of(2, 1)
        split(lambda: hf(**LLAMA), mesh)  # what is loaded once
        for build in (lambda: hf(**SHAPE), lambda: hf(name=str(tmp_path))):
            network, taken = measured(lambda build=build: split(build, mesh))
            size = 4 * network.num_params
            assert size > 200e6
            assert taken < 0.5 * size + 20e6, f"{taken / 1e6} MB"
            del network

    on_ranks(work)
    network, taken = measured(lambda: hf(**SHAPE))
    assert taken > 0.5 * 4 * network.num_params + 20e6, "the measure works"


def split(build, mesh: DeviceMesh) -> Backbone:
    with DeferredWeights() as deferred:
        network = build()
    network.deferred = deferred
    shard(network, mesh, torch.device("cpu"), cpu_offload=False)
    return network


def measured(build) -> tuple[Backbone, int]:
    """What `build` returns, and the bytes by which memory was larger at its peak than before.

    What earlier tests freed is given back to the system first: memory that is used again would not be counted.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    return build(), memory("VmHWM") - before


def memory(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


# Runs ------------------------------------------------------------------------------------------------------------

MARKOV = ["data=markov", "data.num_train_sequences=64", "data.num_val_sequences=10"]
RUN = [*SMALL, *MARKOV, "family=absorbing", "optimizer.lr=1e-2", f"budget.tokens={3 * TOKENS}", "logger=none"]
LEARNED = ["t_sampler=learned", "t_sampler.num_bins=2", "t_sampler.warmup_draws=1"]


@pytest.mark.parametrize(
    "options",
    [
        ["strategy=fsdp2", "trainer.strategy.tensor_parallel_size=2"],
        ["strategy=fsdp2_offload", "backbone.gradient_checkpointing=true", "trainer.gradient_clip_val=0.1"],
    ],
    ids=["tensor parallel", "offloaded and checkpointed"],
)
def test_two_processes_adapt_a_pretrained_model_as_one(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = AutoConfig.for_model("llama", vocab_size=8, **{**LLAMA, "num_key_value_heads": 2})
    AutoModelForCausalLM.from_config(config).save_pretrained("pretrained")
    run = [*RUN, *LEARNED, "backbone.name=pretrained", "backbone.config=null"]
    clip = [option for option in options if "clip" in option]
    assert dlmkit("train", *run, *clip, "hydra.run.dir=one").code == 0
    train_on_ranks(*run, *options, "hydra.run.dir=two")
    one, two = Path("one"), Path("two")
    assert summary(two)["val_nll"] == pytest.approx(summary(one)["val_nll"], rel=1e-5)
    assert summary(two)["val_tokens"] == summary(one)["val_tokens"]
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-3, atol=1e-4)
