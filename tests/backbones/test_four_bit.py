"""backbone.lora.quantize=4bit: frozen layers in 4 bits under trained adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dlmkit.backbones.hf import HFBackbone
from dlmkit.types import NetworkInput
from networks import V, at_half, everywhere, hf_network, some_tokens

pytest.importorskip("torchao", reason="the extra `quantized` is not installed")

from dlmkit.backbones.hf.four_bit import FourBitLinear

LORA: dict[str, Any] = {"rank": 2, "alpha": 4, "dropout": 0.0, "train_embeddings": True, "quantize": "4bit"}


def layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(128, 256), nn.Linear(48, 64, bias=False), Conv1D(192, 64)]


@pytest.mark.parametrize("index", range(3))
def test_a_layer_is_the_plain_one_of_its_rounded_weight(index: int) -> None:
    """Outputs and the gradient of inputs; the rounding is that of NF4, 9% to 10% of normally distributed weights."""
    plain = layers()[index]
    nn.init.normal_(plain.weight)
    original = plain.weight.detach().clone()
    packed = FourBitLinear(copy.deepcopy(plain))
    rounded = copy.deepcopy(packed).restored()
    error = (rounded.weight - original).norm() / original.norm()
    assert 0.08 < float(error) < 0.11
    assert type(rounded) is type(plain)
    width = packed.shape[1]
    one, other = (torch.randn(3, 5, width, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    outputs = [layer(inputs.requires_grad_()) for layer, inputs in ((packed, one), (rounded, other))]
    torch.testing.assert_close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    assert not [name for name, parameter in packed.named_parameters() if name.endswith("weight")]


@pytest.mark.parametrize("index", range(3))
def test_bytes_are_those_that_are_held(index: int) -> None:
    """Little more than half a byte a weight, where layers are not tiny."""
    layer = FourBitLinear(layers()[index])
    inner = layer._packed.tensor
    held = sum(getattr(inner, name).nbytes for name in inner.__tensor_flatten__()[0])
    assert layer.num_bytes == held
    large = FourBitLinear(nn.Linear(1024, 1024, device="meta"))
    assert large.num_bytes / large.num_weights == pytest.approx(4.127 / 8, rel=1e-3)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def pretrained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / request.param
    torch.manual_seed(0)
    hf_network(request.param).model.save_pretrained(folder)
    return folder


def adapted(folder: Path, **changes: Any) -> HFBackbone:
    """A network on a pretrained model, with adapters that are not zero."""
    torch.manual_seed(0)
    network = hf_network("llama", name=str(folder), config=None, lora={**LORA, **changes})
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return network


def test_gradients_reach_adapters_and_embeddings_alone(pretrained: Path) -> None:
    network = adapted(pretrained)
    x = some_tokens(2, 7)
    network(NetworkInput(x, at_half(x))).logits(everywhere(x))[:, 0].sum().backward()
    reached = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert reached
    assert all("lora_" in name or "embed_tokens" in name or "wte" in name for name in reached)
    assert any("lora_A" in name for name in reached)
    assert network.weights_to_save() == {n for n, p in network.named_parameters() if p.requires_grad}


def test_numbers_are_those_of_the_plain_network(pretrained: Path) -> None:
    """Parameters and operations count what 4 bits stand for; bytes count the 4 bits."""
    packed, plain = adapted(pretrained), adapted(pretrained, quantize=None)
    assert packed.num_params == plain.num_params
    assert packed.flops_per_token(8, 0.5) == plain.flops_per_token(8, 0.5)
    in_layers = sum(layer.num_weights for layer in packed.modules() if isinstance(layer, FourBitLinear))
    assert in_layers > 1000
    assert plain.weight_bytes(4) - packed.weight_bytes(4) > 3 * in_layers
    assert not packed.divisible
    assert plain.divisible


def test_merging_keeps_predictions(pretrained: Path) -> None:
    network = adapted(pretrained).eval()
    x = some_tokens(2, 7)
    inputs = NetworkInput(x, at_half(x))
    with torch.no_grad():
        before = network(inputs).logits(everywhere(x))
        copied = copy.deepcopy(network)(inputs).logits(everywhere(x))
        moved = network.to("cpu")(inputs).logits(everywhere(x))
        model = network.to_hugging_face()
        ids = torch.cat([torch.full((2, 1), network.bos_id), x], dim=1)
        after = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    torch.testing.assert_close(copied, before)
    torch.testing.assert_close(moved, before)
    known = torch.arange(V) != network.mask_id
    torch.testing.assert_close(after[:, :V][:, known], before[:, known], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("lora", "name", "message"),
    [
        ({**LORA, "rank": 0}, "given", "with rank 0"),
        (LORA, None, "with backbone.name null"),
        ({**LORA, "quantize": "3bit"}, "given", "is unknown|3bit"),
    ],
)
def test_what_makes_no_sense_is_refused(pretrained: Path, lora: dict[str, Any], name: str | None, message: str) -> None:
    chosen = {"name": str(pretrained), "config": None} if name else {}
    with pytest.raises(ValueError, match=message):
        hf_network("llama", lora=lora, **chosen)
