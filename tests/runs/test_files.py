"""Atomic writes: the new file or the old one, and nothing beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from dlmkit.files import write_bytes, write_json, write_text


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
    """A reader that looks while the file is flushed sees the old one."""
    file = tmp_path / "text.txt"
    write_text(file, "old")
    seen: list[str] = []
    monkeypatch.setattr("os.fsync", lambda _: seen.append(file.read_text()))
    write_text(file, "new")
    assert seen == ["old"]


def test_json(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"text": "ψ", "value": math.nan})
    assert '"ψ"' in file.read_text(encoding="utf-8")
    assert math.isnan(json.loads(file.read_text(encoding="utf-8"))["value"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, [math.inf], allow_nan=False)
    assert "ψ" in file.read_text(encoding="utf-8")
