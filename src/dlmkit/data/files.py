"""Input files and the cache: expanding patterns, fingerprints by content, atomic writes."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from dlmkit.text_hints import closest

_MOST_HASHED = 2**30  # bytes; the files of a larger corpus are identified by path, size and time of change


def find_files(files: str | Iterable[str]) -> list[Path]:
    """Expand names and glob patterns to existing, non-empty files: sorted within each pattern, without duplicates.

    Raises:
        ValueError: no pattern, one that matches no file, or an empty file.
    """
    patterns = [files] if isinstance(files, str) else list(files)
    if not any(patterns):
        raise ValueError("files is empty: name at least one file or glob pattern")
    return list(dict.fromkeys(path for pattern in patterns for path in _expand(pattern)))


def _expand(pattern: str) -> list[Path]:
    name = os.path.expanduser(pattern)
    is_name = os.path.isfile(name)  # which "[a].txt" can be, though it is a pattern for another name
    found = [Path(name)] if is_name else list(map(Path, sorted(glob.glob(name, recursive=True))))
    for path in found:
        if not path.exists():
            raise ValueError(
                f"{str(path)!r} is a link to {os.readlink(path)!r}, which does not exist: mend it, or leave it out"
            )
        if not path.is_file() and not path.is_dir():
            raise ValueError(f"{str(path)!r} is a pipe or a device: text is read several times, so name a file")
    paths = [path for path in found if path.is_file()]
    if not paths:
        raise ValueError(f"no file matches {pattern!r}: {nearest(pattern)}")
    for path in paths:
        if path.stat().st_size == 0:
            raise ValueError(f"{str(path)!r} is empty: remove it from files or give it text")
    return paths


def nearest(name: str) -> str:
    """Return a hint that names the existing path nearest to one that does not exist."""
    path = Path(name).expanduser()
    if path.is_dir():
        return "it is a folder, so name the files in it, such as " + repr(str(path / "*"))
    while not path.parent.is_dir():
        path = path.parent
    close = closest(path.name, os.listdir(path.parent))
    if close is not None:
        return f"the nearest existing name is {str(path.parent / close)!r}"
    return f"nothing in {str(path.parent.resolve())!r} has a similar name; check the path"


def digest(recipe: object) -> str:
    """Return 16 hex digits, the hash of a JSON-serializable description."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def identity(paths: Iterable[Path]) -> list[list[str | int]]:
    """Identify files by content, so that a corpus may be moved; above 1 GiB by paths, sizes and times of change."""
    status = {path: path.stat() for path in paths}
    if sum(one.st_size for one in status.values()) > _MOST_HASHED:
        return [[str(path.resolve()), one.st_size, one.st_mtime_ns] for path, one in status.items()]
    return [[_hash(path)] for path in status]


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_root(cache_dir: str | None) -> Path:
    """Return the cache folder: the one given, else $DLMKIT_CACHE, else $XDG_CACHE_HOME/dlmkit, else ~/.cache/dlmkit."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("DLMKIT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dlmkit"


def writable(folder: Path) -> Path:
    """Return a folder of the cache, made where it is missing.

    Raises:
        ValueError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / f".{uuid.uuid4().hex}"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise ValueError(
            f"the cache {str(folder)!r} cannot be written ({error.strerror}): set data.cache_dir or DLMKIT_CACHE to a"
            " folder that can be written"
        ) from error
    return folder


def write_folder(folder: Path, fill: Callable[[Path], None], damaged: int | None = None) -> None:
    """Call `fill` on a temporary folder, then rename that to `folder`.

    A crash leaves nothing under `folder`; of two processes that race, the first one's folder stays.

    Args:
        folder: what is made.
        fill: writes into a folder.
        damaged: the inode of a damaged folder of that name, which is replaced; ``None`` where there is none. What
            another process has put in its place meanwhile stays.

    Raises:
        ValueError: the folder above cannot be written to.
    """
    draft = writable(folder.parent) / f".{folder.name}-{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        fill(draft)
        if damaged is not None:
            _move_aside(folder, damaged)
        _move(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move_aside(folder: Path, inode: int) -> None:
    """Remove a folder in one step, if it is still the one with that inode."""
    try:
        if folder.stat().st_ino == inode:
            aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
            folder.rename(aside)
            shutil.rmtree(aside)
    except FileNotFoundError:  # another process was first
        return


def _move(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # an error other than a lost race
            raise
