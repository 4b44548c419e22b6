"""Every test here runs in an empty folder of its own, and leaves no process behind."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import STARTED, kill


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    yield
    while STARTED:
        kill(STARTED.pop())
