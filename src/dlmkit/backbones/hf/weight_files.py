"""The files with the weights of a pretrained model."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def safetensors_of(name: str) -> list[Path]:
    """Return the safetensors files of a local folder or of a model that the hub gives; none where it has no such."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(name, allow_patterns=["model*.safetensors", INDEX]))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError):
            return []
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    files = [folder / shard for shard in shards_of(folder / INDEX)] if (folder / INDEX).is_file() else []
    return files if all(file.is_file() for file in files) else []


def shards_of(index: Path) -> list[str]:
    """Return the names of the files that an index of weights lists, sorted.

    Raises:
        ValueError: no such list, or a file outside of the index's folder.
    """
    try:
        shards = sorted({str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is damaged: download it again") from error
    for shard in shards:
        if Path(shard).name != shard or shard == "..":
            raise ValueError(f"{index} names {shard!r}, which is not a file beside it: download the model again")
    return shards
