"""A pretrained network is built again from what a checkpoint keeps of its configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from networks import SIZES, L, V, hf_network, hidden, randomised, some_tokens


@pytest.mark.parametrize("family", sorted(SIZES))
def test_it_computes_the_same(family: str, tmp_path: Path) -> None:
    """With padding rows in the embedding, of each family: the same weights by name and shape, the same predictions."""
    config = {"model_type": family, **SIZES[family], "vocab_size": V + 3}
    eager = {"attention": "eager"}  # which all have
    randomised(hf_network(family, config=config, **eager)).model.save_pretrained(tmp_path)
    one = hf_network(family, name=str(tmp_path), config=None, **eager).eval()
    kept = json.loads(json.dumps(one.pretrained_config))
    again = hf_network(family, config=kept, **eager).eval()
    again.load_state_dict(one.state_dict())
    assert again.model.get_input_embeddings().weight.shape[0] == V + 3
    assert again.pretrained_config is None
    x = some_tokens(2, L)
    assert bool((hidden(again, x) == hidden(one, x)).all())
    torch.testing.assert_close(again.head.weight, one.head.weight, rtol=0, atol=0)


def test_a_new_row_is_kept(tmp_path: Path) -> None:
    """The mask's, which a pretrained model does not have."""
    hf_network("gpt2", vocab_size=V - 1, mask_id=None).model.save_pretrained(tmp_path)
    one = hf_network("gpt2", name=str(tmp_path), config=None)
    again = hf_network("gpt2", config=one.pretrained_config)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in one.state_dict().items()}


def test_adapters_need_their_model(tmp_path: Path) -> None:
    """Its weights are not in their checkpoints."""
    hf_network("llama").model.save_pretrained(tmp_path)
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0, "train_embeddings": True}
    assert hf_network("llama", name=str(tmp_path), config=None, lora=lora).pretrained_config is None
