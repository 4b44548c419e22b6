"""Every family, from a pretrained folder and back into one: nothing of the causal LM is lost on the way."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dlmkit.backbones.hf import HFBackbone
from dlmkit.backbones.hf.families import FAMILIES
from dlmkit.backbones.hf.loading import NEW_ROWS
from dlmkit.types import FULL_ATTENTION, Attention, NetworkInput
from networks import SIZES, hf_network, some_tokens

V, L = 13, 9
NEW_MASK = V

# Families whose head may be apart from the embedding, or one with it.
ANY_HEAD = [name for name in FAMILIES if name not in ("gpt2", "gemma2", "gemma3_text")]
HEADS = [(name, True) for name in FAMILIES if name not in ("gpt_neox", "phi")] + [(name, False) for name in ANY_HEAD]


def pretrained(folder: Path, family: str, tied: bool = True) -> Path:
    """A causal LM as a user has it: a folder with a config and weights, none of them zero."""
    torch.manual_seed(0)
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = AutoConfig.for_model(family, vocab_size=V, tie_word_embeddings=tied, **ids, **SIZES[family])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def backbone(folder: Path, causal: bool = False, attention: str = "eager", vocab_size: int = V + 1) -> HFBackbone:
    sizes = {"vocab_size": vocab_size, "mask_id": NEW_MASK, "bos": "none", "name": str(folder), "config": None}
    return hf_network("llama", causal=causal, attention=attention, **sizes).eval()


@torch.no_grad()
def logits(network: HFBackbone, ids: Tensor, attention: Attention = FULL_ATTENTION) -> Tensor:
    """Its logits of tokens 1 to L - 1, [B, L - 1, V], without the row of the mask."""
    everywhere = torch.ones_like(ids, dtype=torch.bool)
    prediction = network(NetworkInput(ids, torch.zeros(len(ids)), attention=attention))
    return prediction.logits(everywhere).unflatten(0, ids.shape)[:, 1:, :V]


@pytest.mark.parametrize(("family", "tied"), HEADS)
def test_a_causal_lm_keeps_its_logits(family, tied, tmp_path):
    """Causal, and annealed with r = 0, the network has the pretrained model's logits, mask row added or not."""
    folder, ids = pretrained(tmp_path / "model", family, tied), some_tokens(2, L)
    original = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        reference = original(input_ids=ids).logits[:, :-1]
    for attention in [one for one in ("eager", "sdpa") if one in FAMILIES[family].kernels]:
        torch.testing.assert_close(
            logits(backbone(folder, causal=True, attention=attention), ids), reference, rtol=1e-4, atol=1e-5
        )
        annealed = backbone(folder, attention=attention)
        torch.testing.assert_close(logits(annealed, ids, Attention(0.0)), reference, rtol=1e-4, atol=1e-5)
        assert (logits(annealed, ids, Attention(1.0)) - reference).abs().max() > 0.01


@pytest.mark.parametrize(("family", "tied"), HEADS)
def test_a_new_mask_row(family, tied, tmp_path):
    """Old rows stay; the new one is their mean plus noise, in the head too where that is another table."""
    folder = pretrained(tmp_path / "model", family, tied)
    torch.manual_seed(1)
    network = backbone(folder)
    original = AutoModelForCausalLM.from_pretrained(folder)
    tables = [network.model.get_input_embeddings().weight, network.model.get_output_embeddings().weight]
    before = [original.get_input_embeddings().weight, original.get_output_embeddings().weight]
    assert (tables[0] is tables[1]) == tied
    for table, old in zip(tables, before, strict=True):
        assert table.shape[0] == V + 1
        torch.testing.assert_close(table[:V], old)
        noise = (table[V] - old.mean(0)) * table.shape[1] ** 0.5
        assert 0 < float(noise.abs().max()) < 5
    if not tied:
        assert not torch.equal(tables[0][V], tables[1][V])


@pytest.mark.parametrize("family", FAMILIES)
def test_out_and_in_again(family, tmp_path):
    """Exported, the model opens in transformers bidirectional and with equal logits; read back, it is the same."""
    network, ids = backbone(pretrained(tmp_path / "model", family)), some_tokens(2, L)
    before = logits(network, ids)
    model = network.to_hugging_face()
    model.save_pretrained(tmp_path / "out")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert opened.config.is_causal is False
    with torch.no_grad():
        torch.testing.assert_close(opened(input_ids=ids).logits[:, :-1, :V], before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(backbone(tmp_path / "out"), ids), before, rtol=1e-5, atol=1e-5)


def test_a_process_that_never_imports_dlmkit_gets_the_same_logits(tmp_path):
    network, ids = backbone(pretrained(tmp_path / "model", "llama")), some_tokens(2, L)
    torch.save((ids, logits(network, ids)), tmp_path / "expected.pt")
    network.to_hugging_face().save_pretrained(tmp_path / "out")
    code = (
        "import sys, torch, transformers\n"
        "model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1] + '/out').eval()\n"
        "ids, expected = torch.load(sys.argv[1] + '/expected.pt')\n"
        "found = model(input_ids=ids).logits[:, :-1, : expected.shape[-1]]\n"
        "torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)\n"
        "assert not [name for name in sys.modules if name.startswith('dlmkit')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_padding_rows_are_kept_and_never_predicted(tmp_path):
    folder = pretrained(tmp_path / "model", "llama")
    network = hf_network("llama", vocab_size=10, mask_id=9, bos="none", name=str(folder), config=None)
    assert network.model.get_input_embeddings().weight.shape[0] == V
    assert network.head.weight.shape[0] == 10


# What is refused


def test_another_tokenizers_vocabulary(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer has 1038 tokens with the mask, .* has embeddings for 13"):
        backbone(pretrained(tmp_path / "model", "llama"), vocab_size=13 + NEW_ROWS + 1)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("t5", "is an encoder-decoder"),
        ("bert", "is a masked LM, bidirectional already"),
        ("mamba", "is not tested to turn bidirectional"),
        ("vit", "is no causal LM"),
    ],
)
def test_families_that_are_refused(family, reason, tmp_path):
    AutoConfig.for_model(family).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=f"model type '{family}' {reason}.*gpt2.*llama"):
        backbone(tmp_path / "model")


def test_falcon_with_alibi_is_refused(tmp_path):
    folder = pretrained(tmp_path / "model", "falcon")
    config = AutoConfig.from_pretrained(folder)
    config.alibi = True
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match="alibi=true"):
        backbone(folder)


def test_kernels_that_a_family_does_not_support(tmp_path):
    with pytest.raises(ValueError, match=r"'sdpa' does not work for model type 'gemma2': choose one of eager"):
        backbone(pretrained(tmp_path / "gemma", "gemma2"), attention="sdpa")
    with pytest.raises(ValueError, match="'flashy' is unknown"):
        backbone(pretrained(tmp_path / "llama", "llama"), attention="flashy")


def test_damaged_weights(tmp_path):
    folder = pretrained(tmp_path / "model", "llama")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(ValueError, match="holds damaged weights"):
        backbone(folder)


def test_weights_of_another_model(tmp_path):
    folder = pretrained(tmp_path / "model", "llama")
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 3
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"lacks weight model\.layers\.2"):
        backbone(folder)


def test_a_step_with_a_mask_may_use_another_kernel(tmp_path):
    """As with flash attention, which supports no mask: annealing runs on sdpa, full attention on the first kernel."""
    folder, ids = pretrained(tmp_path / "model", "llama"), some_tokens(2, L)
    network = backbone(folder)
    network.attention_with_mask = "sdpa"
    plain = backbone(folder)
    for ratio, kernel in ((0.5, "sdpa"), (1.0, "eager"), (0.3, "sdpa")):
        attention = Attention(ratio, seed=3)
        torch.testing.assert_close(logits(network, ids, attention), logits(plain, ids, attention), rtol=1e-4, atol=1e-5)
        assert network.model.config._attn_implementation == kernel


def test_flash_attention_with_masks_is_refused():
    with pytest.raises(ValueError, match="takes no dense mask"):
        hf_network("llama", bos="none", attention_with_mask="flash_attention_2")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradient_checkpointing_changes_no_gradient(family, tmp_path):
    folder, ids = pretrained(tmp_path / "model", family), some_tokens(2, L)
    gradients = []
    for checkpointing in (False, True):
        given = {"mask_id": None, "name": str(folder), "config": None}
        network = hf_network(family, gradient_checkpointing=checkpointing, **given).train()
        for module in network.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        assert network.model.is_gradient_checkpointing == checkpointing
        everywhere = torch.ones_like(ids, dtype=torch.bool)
        prediction = network(NetworkInput(ids, torch.zeros(2), attention=Attention(0.5, seed=1)))
        prediction.token_log_prob(ids, everywhere).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in network.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-6)
