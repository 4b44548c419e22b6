"""How Lightning writes and reads checkpoints here: in the kit's own format, in one step, verified."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from torch import Tensor
from torch.utils._pytree import tree_map_only
from typing_extensions import override

from dlmkit.checkpoints.container import write
from dlmkit.checkpoints.shards import read_whole, remove


class KitCheckpointIO(CheckpointIO):
    """Checkpoints without pickles and with checksums: written as one file, read from one file or from shards."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        write(Path(path), checkpoint)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        # Copied, since the optimizer keeps these tensors while the file may be replaced.
        content: dict[str, Any] = tree_map_only(Tensor, Tensor.clone, read_whole(Path(path)))
        return content

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        remove(Path(path))
