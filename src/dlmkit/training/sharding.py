"""A network sharded over several devices: parameters are gathered layer by layer when they are needed (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, Shard
from torch.optim import Optimizer

from dlmkit.backbones.base import Backbone
from dlmkit.training.adamw_8bit import EightBitStates
from dlmkit.training.tensor_parallel import parallelize

DATA, TENSOR = "data_parallel", "tensor_parallel"
"""Axes of the mesh of processes, as Lightning names them."""


def check_divisible(backbone: Backbone, optimizer: Optimizer) -> None:
    """Check that weights and states can be split over processes.

    Raises:
        ValueError: they cannot, being of 4 or 8 bits in blocks.
    """
    for word, divisible in (
        ("backbone.lora.quantize=4bit", backbone.divisible),
        ("optimizer=adamw_8bit", not isinstance(optimizer, EightBitStates)),
    ):
        if not divisible:
            raise ValueError(
                f"{word} packs numbers in blocks, which strategy=fsdp2 cannot split: set strategy=ddp, or leave it out"
            )


def shard(backbone: Backbone, mesh: DeviceMesh, device: torch.device, cpu_offload: bool) -> None:
    """Shard `backbone` over the mesh's processes, in place, unless that was done before, and make its weights.

    Each of its layers is a unit, what is left (embeddings, head) another. The last unit stays gathered between forward
    and backward, because the head runs after the network's own forward, where the objective evaluates it.

    Args:
        backbone: with weights that are the same on all processes, or without (`Backbone.deferred`): each process then
            makes only what it keeps, one parameter at a time.
        mesh: of the processes, by `DATA` and `TENSOR`.
        device: of this process.
        cpu_offload: keep the shards in main memory.

    Raises:
        ValueError: the mesh has tensor-parallel processes, and the network has no plan for them.
    """
    if isinstance(backbone, FSDPModule):
        return
    whole = dict(backbone.named_parameters())
    if mesh[TENSOR].size() > 1:
        parallelize(backbone, mesh[TENSOR])
    pinned = torch.cuda.is_available()
    offload = CPUOffloadPolicy(pin_memory=pinned) if cpu_offload else OffloadPolicy()
    for layer in backbone.sharding_units():
        fully_shard(layer, mesh=mesh[DATA], offload_policy=offload)
    fully_shard(backbone, mesh=mesh[DATA], reshard_after_forward=False, offload_policy=offload)
    for method in ("prefill", "freeze"):  # they run the trunk, too
        register_fsdp_forward_method(backbone, method)
    if backbone.deferred is not None:
        _make(backbone, whole, torch.device("cpu") if cpu_offload else device)


def _make(backbone: Backbone, whole: dict[str, nn.Parameter], device: torch.device) -> None:
    """Make this process's part of every parameter, from the parameter that `Backbone.deferred` knows."""
    assert backbone.deferred is not None
    backbone._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
    for name, parameter in backbone.named_parameters():
        assert isinstance(parameter, DTensor)
        part = parameter.to_local()
        with torch.no_grad():
            part.copy_(_part_of(parameter, lambda rows, one=whole[name]: backbone.deferred.make(one, rows)))  # type: ignore[misc]


def _part_of(parameter: DTensor, make: Callable[[slice], Tensor]) -> Tensor:
    """Return this process's part of a parameter: of its tensor-parallel part, the rows of its data-parallel rank."""
    mesh, rows = parameter.device_mesh, slice(None)
    size = parameter.shape[0]
    placed = dict(zip(mesh.mesh_dim_names or (), parameter.placements, strict=True))
    split = placed.get(TENSOR)
    if isinstance(split, Shard):
        part = make(rows)
        sizes = _rows(part.shape[split.dim], mesh[TENSOR])
        part = part.narrow(split.dim, sizes.start, sizes.stop - sizes.start)
        return part[_rows(part.shape[0], mesh[DATA])]
    return make(_rows(size, mesh[DATA]))


def _rows(size: int, mesh: DeviceMesh) -> slice:
    """Return the rows of this process among `size`, which torch.chunk divides."""
    step = -(-size // mesh.size())
    start = min(size, mesh.get_local_rank() * step)
    return slice(start, min(size, start + step))


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


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all gradients together, a plain scalar; shards may lie on different meshes."""
    by_mesh = groupby(sorted(gradients, key=_mesh_number), key=_mesh_number)
    norms = [gathered(torch.nn.utils.get_total_norm(list(group))) for _, group in by_mesh]
    return norms[0] if len(norms) == 1 else torch.nn.utils.get_total_norm(norms)


def _mesh_number(gradient: Tensor) -> int:
    return gradient.device_mesh.ndim if isinstance(gradient, DTensor) else 0


def move_replicated(network: nn.Module, device: torch.device) -> None:
    """Move to a device, in place, what of a network is not sharded; its shards stay in main memory."""

    def moved(tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, DTensor) else tensor.to(device)

    network._apply(moved)  # what nn.Module.to calls


def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor that may be sharded over devices as a plain one."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
