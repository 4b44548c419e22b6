"""Two ranks with gloo: the loss means the same at any world size, draw for draw."""

from __future__ import annotations

import pytest
import torch

from laws.toy_training import assert_same, by_hand, module, trained

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.mark.parametrize(
    ("objective", "process", "micro_batch_size", "accumulate"),
    [
        ("masked", "absorbing", 4, 1),
        ("uniform", "uniform", 1, 4),
        ("autoregressive", "none", 2, 2),
    ],
)
def test_two_ranks_take_the_step_of_one(objective, process, micro_batch_size, accumulate):
    """Each rank has other blocks, with other numbers of scored tokens, and the times that one rank would give them."""
    split = trained(
        module(objective, process), micro_batch_size, accumulate, num_steps=2, devices=2, strategy="ddp_fork"
    )
    assert_same(split, by_hand(module(objective, process), num_steps=2))
