"""How a run is spread over devices: Lightning's strategies, with the kit's checkpoints."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from dlmkit.strategies.sharded import ShardedStrategy

OWN: dict[object, type[Strategy]] = {ModelParallelStrategy: ShardedStrategy, ShardedStrategy: ShardedStrategy}
"""Lightning's strategies with checkpoints of their own, and the kit's in their place."""


def check_strategy(strategy: Strategy) -> None:
    """Check that a strategy fits the devices and leaves checkpoints to the kit.

    Raises:
        ValueError: sizes that do not fit, or one that reads checkpoints by itself, pickles among them.
    """
    if isinstance(strategy, ShardedStrategy):
        strategy.check_sizes()
    elif type(strategy).load_checkpoint is not Strategy.load_checkpoint:
        raise ValueError(
            f"trainer.strategy {type(strategy).__name__} has checkpoints of its own, which are not verified: set"
            " strategy=ddp, or strategy=fsdp2 for a sharded network"
        )
