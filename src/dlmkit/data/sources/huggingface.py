"""Hugging Face datasets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets

from dlmkit.data.files import digest, nearest
from dlmkit.data.sources.base import Source
from dlmkit.ranges import checked


class HuggingFace(Source):
    """A dataset of the hub or of a local folder; a document is one column of a row.

    Args:
        name: name on the hub, a folder written by ``save_to_disk``, or a folder with data files.
        config: the dataset's configuration (subset), ``None`` for its only one; not for ``save_to_disk`` folders.
        split: the split to read; training and validation documents are both taken from it.
        column: the column that holds the text.
    """

    @checked
    def __init__(self, name: str, config: str | None = None, split: str = "train", column: str = "text") -> None:
        self._name = name
        self._column = column
        self._dataset = _load(name, config, split)
        if column not in self._dataset.column_names:
            available = ", ".join(self._dataset.column_names)
            raise ValueError(f"dataset {name!r} has no column {column!r}: set column to one of {available}")

    def documents(self) -> Iterator[str]:
        """Yield the column's rows; null counts as an empty document."""
        for batch in self._dataset.select_columns([self._column]).iter(batch_size=1024):
            for text in batch[self._column]:
                if not isinstance(text, str | None):
                    kind = type(text).__name__
                    raise ValueError(
                        f"dataset {self._name!r}: column {self._column!r} holds {kind}: name a column of text"
                    )
                yield text or ""

    @property
    def fingerprint(self) -> str:
        """Hash of the library's own fingerprint of these rows, and of the column."""
        return digest(["huggingface", self._dataset._fingerprint, self._column])

    def num_documents(self) -> int:
        """Return the number of rows."""
        return len(self._dataset)


def _load(name: str, config: str | None, split: str) -> datasets.Dataset:
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"source.name = {name!r} is not a folder: {nearest(name)}")
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    return _load_saved(folder, config, split) if saved else _load_named(name, config, split)


def _load_saved(folder: Path, config: str | None, split: str) -> datasets.Dataset:
    if config is not None:
        raise ValueError(f"source.config = {config!r} does not apply to a save_to_disk folder: set it to null")
    loaded = datasets.load_from_disk(str(folder))
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if split not in loaded:
        raise ValueError(f"{str(folder)!r} has no split {split!r}: set split to one of {', '.join(loaded)}")
    return loaded[split]


def _load_named(name: str, config: str | None, split: str) -> datasets.Dataset:
    try:
        return datasets.load_dataset(name, config, split=split)
    except (ConnectionError, FileNotFoundError) as error:
        raise ValueError(
            f"source.name = {name!r} is neither a local folder nor reachable on the hub: check the name, or run "
            f"`hf download {name} --repo-type dataset --local-dir DIR` where there is network and set source.name=DIR"
        ) from error
    except ValueError as error:  # unknown config or split: the library's message on one line
        raise ValueError(
            f"dataset {name!r}, config {config!r}, split {split!r}: {' '.join(str(error).split())}"
        ) from error
