"""How Lightning writes and reads checkpoints here: in the kit's own format, in one step, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from dlmkit.checkpoints.container import read, write


class KitCheckpointIO(CheckpointIO):
    """Checkpoints as `checkpoints.container` has them: one file, without pickles, with a checksum."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        write(Path(path), checkpoint)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Copied, since the optimizer keeps these tensors while the file may be replaced.
        content: dict[str, Any] = tree_map_only(Tensor, Tensor.clone, read(Path(path)))
        return content

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy, except that it reads checkpoints as every other one does.

    Raises:
        ValueError: checkpoints in shards, which are pickles in part and which nothing but a resumed run could read.
    """

    def __init__(self, *, save_distributed_checkpoint: bool = False, **settings: Any) -> None:
        if save_distributed_checkpoint:
            raise ValueError(
                "trainer.strategy.save_distributed_checkpoint true is not supported: set it to false, so that a"
                " checkpoint is one file that every command reads"
            )
        super().__init__(save_distributed_checkpoint=False, **settings)

    @override
    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        checkpoint = read(Path(self.broadcast(checkpoint_path)))
        assert self.model is not None
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
        found = set_model_state_dict(self.model, checkpoint["state_dict"], options=options)
        assert not found.unexpected_keys, found.unexpected_keys  # missing ones are frozen pretrained weights
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            state = FullyShardedDataParallel.rekey_optim_state_dict(saved, OptimStateKeyType.PARAM_NAME, self.model)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=state, options=options)
        return checkpoint


def check_strategy(strategy: Strategy) -> None:
    """Check that a strategy leaves checkpoints to the kit.

    Raises:
        ValueError: one that reads them by itself, pickles among them.
    """
    if type(strategy).load_checkpoint not in (Strategy.load_checkpoint, ShardedStrategy.load_checkpoint):
        raise ValueError(
            f"trainer.strategy {type(strategy).__name__} has checkpoints of its own, which are not verified: use ddp,"
            " or lightning.pytorch.strategies.ModelParallelStrategy for a sharded network"
        )
