"""Atomic writes: the new file or the old one, and nothing beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dlmkit.files import remove_partials, write_bytes, write_json, write_text


def test_a_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "text.txt"
    write_text(file, "one")
    write_text(file, "zwölf\n")
    assert file.read_bytes() == "zwölf\n".encode()
    write_bytes(file, b"\x00")
    assert file.read_bytes() == b"\x00"
    assert list(file.parent.iterdir()) == [file]


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "text.txt"
    write_text(file, "old")

    def full_disk(_: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that looks while the file is flushed sees the old one, and the new one while its folder is."""
    file = tmp_path / "text.txt"
    write_text(file, "old")
    seen: list[str] = []
    monkeypatch.setattr("os.fsync", lambda _: seen.append(file.read_text()))
    write_text(file, "new")
    assert seen == ["old", "new"]


def test_files_that_a_killed_process_left_are_removed(tmp_path: Path) -> None:
    """Those alone: what a user calls alike stays."""
    left = [tmp_path / f".a.json.{'0' * 32}", tmp_path / "b" / f".step=2.ckpt.{'f' * 32}"]
    kept = [tmp_path / name for name in (".a.json", f"a.json.{'0' * 32}", f".a.json.{'g' * 32}", ".a.json.0123")]
    (tmp_path / "b").mkdir()
    for path in [*left, *kept]:
        path.write_text("x")
    remove_partials(tmp_path)
    assert [path.exists() for path in [*left, *kept]] == [False] * len(left) + [True] * len(kept)


def test_json(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"text": "ψ", "value": math.nan})
    assert '"ψ"' in file.read_text(encoding="utf-8")
    assert math.isnan(json.loads(file.read_text(encoding="utf-8"))["value"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, [math.inf], allow_nan=False)
    assert "ψ" in file.read_text(encoding="utf-8")
