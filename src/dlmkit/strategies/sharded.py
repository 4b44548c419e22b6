"""FSDP2, and tensor parallelism inside it: every process holds a part of the weights and optimizer states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer
from typing_extensions import override

from dlmkit.checkpoints import shards
from dlmkit.checkpoints.container import read
from dlmkit.checkpoints.verify import shards_of
from dlmkit.module import DiffusionLM
from dlmkit.ranges import Count, checked
from dlmkit.training.sharding import move_replicated


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with the kit's checkpoints, CPU offload, and sizes that follow the devices.

    Args:
        data_parallel_size: processes that read different data; "auto": all, over the tensor-parallel ones.
        tensor_parallel_size: neighbouring processes that share each layer's products; "auto" is 1.
        save_distributed_checkpoint: each process writes what it holds, so that a checkpoint is never gathered; it is
            then a file and a folder (`checkpoints.shards`). Otherwise it is one file, gathered on process 0. Either is
            read by every command and at any number of processes.
        cpu_offload: keep weights, gradients and optimizer states in main memory, and step there.
        process_group_backend: "nccl", "gloo" or a list such as "cpu:gloo,cuda:nccl"; ``None``: what fits the device.
    """

    @checked
    def __init__(
        self,
        data_parallel_size: Count | Literal["auto"] = "auto",
        tensor_parallel_size: Count | Literal["auto"] = 1,
        save_distributed_checkpoint: bool = False,
        cpu_offload: bool = False,
        process_group_backend: str | None = None,
    ) -> None:
        super().__init__(
            data_parallel_size,
            1 if tensor_parallel_size == "auto" else tensor_parallel_size,
            save_distributed_checkpoint,
            process_group_backend,
        )
        self.cpu_offload = cpu_offload

    def check_sizes(self) -> None:
        """Set sizes that are "auto"; to be called once the devices are known.

        Raises:
            ValueError: their product is not the number of processes.
        """
        world, tensor = self.num_nodes * self.num_processes, int(self._tensor_parallel_size)
        if self._data_parallel_size == "auto" and world % tensor == 0:
            self._data_parallel_size = world // tensor
        if self._data_parallel_size == "auto" or self._data_parallel_size * tensor != world:
            raise ValueError(
                f"trainer.strategy.data_parallel_size {self._data_parallel_size} times tensor_parallel_size {tensor} is"
                f" not the number of processes, {world}: set data_parallel_size to auto, and tensor_parallel_size to a"
                " number that divides trainer.devices"
            )

    @override
    def setup_environment(self) -> None:
        self.check_sizes()
        if self.cpu_offload and self.root_device.type == "cuda" and self._process_group_backend is None:
            self._process_group_backend = "cpu:gloo,cuda:nccl"  # gradients in main memory are summed there
        super().setup_environment()
        assert isinstance(self.lightning_module, DiffusionLM)
        self.lightning_module.offload_shards = self.cpu_offload

    @override
    def model_to_device(self) -> None:
        if not self.cpu_offload:
            super().model_to_device()
            return
        move_replicated(self._network, self.root_device)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        options = StateDictOptions(full_state_dict=not self._save_distributed_checkpoint, cpu_offload=True)
        state: dict[str, Any] = get_optimizer_state_dict(self._network, inner, options=options)
        if self._save_distributed_checkpoint or not state:  # gathered on process 0 alone
            return state
        return shards.numbered(state)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        file = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            file.parent.mkdir(parents=True, exist_ok=True)
            shards.save(file, checkpoint)
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, file)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        file = Path(self.broadcast(checkpoint_path))  # which process 0 has verified
        return self._load_shards(file) if shards_of(file) else self._load_whole(file)

    def _load_shards(self, file: Path) -> dict[str, Any]:
        options = StateDictOptions(strict=False)
        network = self._network
        states = [get_optimizer_state_dict(network, optimizer, options=options) for optimizer in self.optimizers]
        own = {"state_dict": get_model_state_dict(network, options=options), "optimizer_states": states}
        checkpoint = shards.load(file, own)
        _check_known(checkpoint["state_dict"], network.state_dict(), file)
        set_model_state_dict(network, checkpoint["state_dict"], options=options)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(network, optimizer, optim_state_dict=saved, options=options)
        return checkpoint

    def _load_whole(self, file: Path) -> dict[str, Any]:
        checkpoint = read(file)
        network = self._network
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        _check_known(checkpoint["state_dict"], network.state_dict(), file)
        set_model_state_dict(network, checkpoint["state_dict"], options=options)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = _named(saved, optimizer, network)
            set_optimizer_state_dict(network, optimizer, optim_state_dict=named, options=options)
        return checkpoint

    @property
    def _network(self) -> nn.Module:
        assert self.model is not None
        return self.model


def _check_known(saved: Mapping[str, Any], own: Mapping[str, Any], file: Path) -> None:
    unknown = saved.keys() - own.keys()  # missing ones are frozen pretrained weights
    if unknown:
        raise ValueError(f"{file} has an unexpected weight {min(unknown)}: it was made by another kind of backbone")


def _named(state: dict[str, Any], optimizer: Optimizer, network: nn.Module) -> dict[str, Any]:
    """Return a plain optimizer's state with its parameters named, by their place in the groups."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    own = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    name_of = dict(zip(numbers, own, strict=True))
    groups = [{**group, "params": [name_of[number] for number in group["params"]]} for group in state["param_groups"]]
    return {"state": {name_of[number]: value for number, value in state["state"].items()}, "param_groups": groups}
