"""docs/usage.md, run from its first block to its last."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import dlmkit as face
from toy_runs import MODEL, SMALL, dlmkit, text_corpus, text_data

PAGE = Path(__file__).parents[2] / "docs" / "usage.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.S | re.M)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    longer = ["length=32", "backbone.config.n_positions=64", "callbacks=[checkpoint]"]
    settings = [*MODEL, *(one for one in SMALL if not one.startswith("callbacks.")), *longer]
    run = dlmkit(
        "train", *settings, *text_data(text_corpus(Path("t.txt"))), "budget.tokens=256", "hydra.run.dir=my_run"
    )
    assert run.code == 0, run.err
    capsys.readouterr()
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 5
    namespace: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    assert printed.startswith("objective=masked process=absorbing sampler=ancestral 2 2 2\n")
    bound, entropy = map(float, re.search(r"nll <= (\S+) nats per token; the entropy is (\S+)", printed).groups())
    assert entropy < bound < entropy + 0.2


def test_public_names_are_those_of_their_modules():
    for name in face.__all__:
        assert getattr(face, name).__module__.startswith("dlmkit."), name
    assert set(face.__all__) <= set(dir(face))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        face.Nothing  # noqa: B018


def test_names_for_type_checkers_are_the_same():
    source = Path(face.__file__).read_text(encoding="utf-8")
    typed = re.findall(r"^    from dlmkit\.(\S+) import (\w+) as \w+$", source, re.M)
    assert {name: home for home, name in typed} == face._HOME


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, dlmkit; print(sorted({'torch', 'lightning', 'transformers', 'hydra'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
