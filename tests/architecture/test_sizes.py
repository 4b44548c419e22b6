"""Files and functions stay short enough to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONGEST_FUNCTION = 50
LONGEST_FILE = {"src": 330, "tests": 450, "benchmarks": 450}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the name of every function, methods and inner ones too, and its lines with signature and docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("folder", LONGEST_FILE)
def test_files(folder: str) -> None:
    lines = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in files(folder)}
    assert lines
    assert {path: length for path, length in lines.items() if length > LONGEST_FILE[folder]} == {}


@pytest.mark.parametrize("folder", LONGEST_FILE)
def test_functions(folder: str) -> None:
    found = {(path.relative_to(ROOT), name): length for path in files(folder) for name, length in functions(path)}
    assert found
    assert {key: length for key, length in found.items() if length > LONGEST_FUNCTION} == {}
