"""A network sharded over several devices: parameters are gathered layer by layer when they are needed (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from dlmkit.backbones.base import Backbone


def shard(backbone: Backbone, mesh: DeviceMesh) -> None:
    """Shard `backbone` over the mesh's data-parallel processes, in place, unless that was done before.

    Each of its layers is a unit, what is left (embeddings, head) another. The last unit stays gathered between forward
    and backward, because the head runs after the network's own forward, where the objective evaluates it.

    Raises:
        ValueError: the mesh has tensor-parallel processes, which are not supported.
    """
    if mesh["tensor_parallel"].size() > 1:
        raise ValueError(
            f"trainer.strategy.tensor_parallel_size {mesh['tensor_parallel'].size()} is not 1: set it to 1 and"
            " trainer.strategy.data_parallel_size to the number of processes"
        )
    data_parallel = mesh["data_parallel"]
    if isinstance(backbone, FSDPModule):
        return
    for layer in backbone.sharding_units():
        fully_shard(layer, mesh=data_parallel)
    fully_shard(backbone, mesh=data_parallel, reshard_after_forward=False)


def reduce_replicated(gradients: Sequence[Tensor], mean: Callable[[Tensor], Tensor], mesh: DeviceMesh | None) -> None:
    """Average, in place, the gradients that sharding does not: those of weights outside of the sharded network.

    Without a mesh all gradients are averaged already.

    Args:
        gradients: of all weights.
        mean: returns the mean of a tensor over the processes.
        mesh: of the processes, or ``None`` where nothing is sharded.
    """
    if mesh is None:
        return
    for gradient in gradients:
        if not isinstance(gradient, DTensor):
            gradient.copy_(mean(gradient))


def move_replicated(network: nn.Module, device: torch.device) -> None:
    """Move to a device, in place, what of a network is not sharded; its shards stay in main memory."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, DTensor) else tensor.to(device)

    network._apply(moved)  # what nn.Module.to calls


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded over devices as a plain one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
