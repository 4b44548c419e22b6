"""From a run to a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dlmkit.backbones.hf import HFBackbone
from dlmkit.checkpoints.folder import check_free, write_folder
from dlmkit.checkpoints.load import load


def export(checkpoint: Path, folder: Path, trust: Sequence[str] = ()) -> None:
    """Write the model of a run, or of a checkpoint in it, into a folder that plain transformers opens.

    Args:
        checkpoint: a run folder or a checkpoint in it.
        folder: where it goes; must not hold anything yet.
        trust: import paths that the run's configuration may name, beside the kit's own parts.

    Raises:
        ValueError: the run's network is not a transformers model, or the folder is in use.
    """
    check_free(folder)
    model = load(checkpoint, trust)
    if not isinstance(model.backbone, HFBackbone):
        raise ValueError(
            f"{checkpoint} has {model.backbone.label}, which transformers has no class for: only backbone=hf can be"
            " exported"
        )
    write_folder(folder, model.backbone.to_hugging_face(), model.config, model.tokenizer)
