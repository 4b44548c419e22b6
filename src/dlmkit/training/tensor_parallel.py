"""Layers whose products several processes share (tensor parallelism), by the plan of the network's family."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from dlmkit.backbones.base import Backbone

STYLES: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
"""What a plan may say: a weight is split by its outputs or by its inputs, and the sum of the latter is taken."""


def parallelize(backbone: Backbone, mesh: DeviceMesh) -> None:
    """Split the layers of `backbone` over a mesh of tensor-parallel processes, in place.

    Norms, embeddings and the head are the same on all of them.

    Raises:
        ValueError: the network has no plan.
    """
    plan = {name: STYLES[style]() for name, style in backbone.tensor_parallel_plan(mesh.size()).items()}
    parallelize_module(backbone, mesh, plan)
