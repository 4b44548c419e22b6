"""Names of files and folders: ~, brackets, pipes, and what a message says about them."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dlmkit.commands.hydra_arguments import home_named
from dlmkit.data.files import find_files
from dlmkit.data.sources.jsonl import JsonLines
from dlmkit.data.sources.parquet import Parquet
from toy_runs import MARKOV, MODEL, SMALL, TOY, dlmkit, train


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("hydra.run.dir=~/runs/a", "hydra.run.dir=/home/me/runs/a"),
        ("hydra.run.dir='~/my runs'", "hydra.run.dir='/home/me/my runs'"),
        ('data.source.files="~/a, b.txt"', 'data.source.files="/home/me/a, b.txt"'),
        ("init_from=~/runs/a", "init_from=/home/me/runs/a"),
        ("data.source.separator='~/'", "data.source.separator='~/'"),
        ("hydra.run.dir=a~/b", "hydra.run.dir=a~/b"),
        ("hydra.run.dir=~other/b", "hydra.run.dir=~other/b"),
        ("~callbacks.lr", "~callbacks.lr"),
        ("--config-dir=~/conf", "--config-dir=/home/me/conf"),
    ],
)
def test_the_home_folder_is_named_by_a_tilde(typed: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert home_named(typed) == expected


def test_a_run_below_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    assert train("~/run", steps=1).code == 0
    assert [path.name for path in Path().iterdir()] == ["home"]
    assert Path("home/run/summary.json").is_file()


def test_a_name_with_brackets_is_a_name_first() -> None:
    Path("[a].txt").write_text("x")
    Path("a.txt").write_text("y")
    assert find_files("[a].txt") == [Path("[a].txt")]
    assert find_files("[ab].txt") == [Path("a.txt")]


def test_a_pipe_is_no_text() -> None:
    os.mkfifo("pipe.txt")
    with pytest.raises(ValueError, match=r"'pipe.txt' is a pipe or a device: text is read several times, so name a"):
        find_files("*.txt")


def test_a_damaged_parquet_file_is_named() -> None:
    pq.write_table(pa.table({"text": ["some words"] * 100}), "a.parquet")
    content = bytearray(Path("a.parquet").read_bytes())
    lines = []
    for place in range(4, 123, 2):
        content[place] ^= 255
        Path("b.parquet").write_bytes(content)
        content[place] ^= 255
        try:
            list(Parquet("b.parquet").documents())
        except ValueError as error:
            lines.append(str(error))
    assert len(lines) > 10
    assert all(line.startswith("'b.parquet'") for line in lines), lines


def test_json_lines_of_another_encoding_are_named() -> None:
    Path("a.jsonl").write_bytes('{"text": "words"}\n'.encode("utf-16"))
    with pytest.raises(ValueError, match=r"'a.jsonl' line 1 is not UTF-8 \(.*\): convert it, for example with iconv"):
        list(JsonLines("a.jsonl").documents())


def test_equal_prompts_are_said() -> None:
    Path("p.jsonl").write_text('{"prompt": "a", "response": "b"}\n' * 50)
    outcome = dlmkit("train", *MODEL, *SMALL, "data=pairs", "data.files=p.jsonl", "tokenizer=bytes", "hydra.run.dir=x")
    assert outcome.code == 2
    assert "no pair is left to val out of 50 with 1 different prompts" in outcome.line


def test_a_budget_of_too_many_steps_is_named() -> None:
    outcome = dlmkit("train", *TOY, *MARKOV, "hydra.run.dir=x", "budget.tokens=100000000000000")
    assert outcome.code == 2
    assert "budget.tokens 100000000000000 is 3,125,000,000,000 steps of batch.size 4 x length 8" in outcome.line
