"""Every source yields its documents in order, knows when they change, and explains bad input in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import one_line

from dlmkit.data.sources import text as text_source
from dlmkit.data.sources.huggingface import HuggingFace
from dlmkit.data.sources.jsonl import JsonLines
from dlmkit.data.sources.kjv import KJV
from dlmkit.data.sources.parquet import Parquet
from dlmkit.data.sources.text import Text

DOCUMENTS = ["In the beginning", "naïve 雲\nsecond line", "the end"]


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def write_jsonl(path: Path, rows: list) -> str:
    return write(path, "\n".join(map(json.dumps, rows)) + "\n\n")


def write_parquet(path: Path, columns: dict) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_text_files_are_documents(tmp_path: Path) -> None:
    for i, document in enumerate(DOCUMENTS):
        write(tmp_path / f"{i}.txt", document)
    source = Text(str(tmp_path / "*.txt"))
    assert list(source.documents()) == list(source.documents()) == DOCUMENTS
    assert source.num_documents() == 3
    several = Text([str(tmp_path / "2.txt"), str(tmp_path / "*.txt")])
    assert list(several.documents()) == [DOCUMENTS[2], DOCUMENTS[0], DOCUMENTS[1]]


def test_text_is_split_at_separators_wherever_reads_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(tmp_path / "a.txt", "\n\n".join([*DOCUMENTS, "\n\n", "more\n"]))
    for piece in (1, 2, 3, 7, 1000):
        monkeypatch.setattr(text_source, "_PIECE", piece)
        documents = list(filter(None, Text(name, separator="\n\n").documents()))
        assert documents == list(filter(None, Text(name, separator=r"\n\n").documents()))  # as a command line gives it
        assert documents == [*DOCUMENTS, "more"]


def test_jsonl_parquet_and_datasets_yield_the_same_documents(tmp_path: Path) -> None:
    rows = [{"body": document, "n": i} for i, document in enumerate(DOCUMENTS)]
    columns = {"body": DOCUMENTS, "n": [0, 1, 2]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)}).save_to_disk(str(tmp_path / "dict"))
    datasets.Dataset.from_dict(columns).save_to_disk(str(tmp_path / "plain"))
    for source in (
        JsonLines(write_jsonl(tmp_path / "a.jsonl", rows), field="body"),
        Parquet(write_parquet(tmp_path / "a.parquet", columns), column="body"),
        HuggingFace(str(tmp_path / "dict"), column="body"),
        HuggingFace(str(tmp_path / "plain"), column="body"),
    ):
        assert list(source.documents()) == DOCUMENTS
        assert source.num_documents() in (3, 4)  # JSON lines counts the empty one


def test_jsonl_replaces_what_utf8_cannot_hold(tmp_path: Path) -> None:
    name = write(tmp_path / "a.jsonl", '{"text": "a\\ud800b"}')
    assert list(JsonLines(name).documents()) == ["a?b"]


def test_kjv_is_clean_prose() -> None:
    documents = list(KJV().documents())
    assert len(documents) == len(set(documents)) == KJV().num_documents() == 1189
    assert documents[0].startswith("In the beginning God created the heaven and the earth. And the earth was without")
    assert documents[-1].endswith("The grace of our Lord Jesus Christ be with you all. Amen.")
    assert "and darkness was upon the face of the deep" in documents[0]
    assert not re.search(r"[\[\]\d\n]|  |\( ", "".join(documents))


def test_fingerprints_follow_content_and_parameters_not_names(tmp_path: Path) -> None:
    first = write(tmp_path / "a.txt", "one\n\ntwo")
    same = write(tmp_path / "b.txt", "one\n\ntwo")
    other = write(tmp_path / "c.txt", "one\n\nTwo")
    assert Text(first).fingerprint == Text(same).fingerprint
    assert len({Text(first).fingerprint, Text(first, "\n\n").fingerprint, Text(other).fingerprint}) == 3
    rows = write_jsonl(tmp_path / "a.jsonl", [{"a": "x", "b": "y"}])
    assert JsonLines(rows, "a").fingerprint != JsonLines(rows, "b").fingerprint
    table = write_parquet(tmp_path / "a.parquet", {"a": ["x"], "b": ["y"]})
    assert Parquet(table, "a").fingerprint != Parquet(table, "b").fingerprint
    datasets.Dataset.from_dict({"a": ["x"], "b": ["y"]}).save_to_disk(str(tmp_path / "saved"))
    saved = str(tmp_path / "saved")
    assert HuggingFace(saved, column="a").fingerprint == HuggingFace(saved, column="a").fingerprint
    assert HuggingFace(saved, column="a").fingerprint != HuggingFace(saved, column="b").fingerprint


def test_large_files_are_identified_without_reading_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(tmp_path / "a.txt", "one")
    monkeypatch.setattr("dlmkit.data.files._MOST_HASHED", 2)
    before = Text(name).fingerprint
    assert Text(name).fingerprint == before
    write(tmp_path / "a.txt", "one two")
    assert Text(name).fingerprint != before


def test_bad_input_is_explained_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "corpus.txt", "text")
    write(tmp_path / "empty.txt", "")
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    rows = write_jsonl(tmp_path / "a.jsonl", [{"body": "x", "id": 1}])
    broken = write(tmp_path / "b.jsonl", '{"text": "x"}\n{"text": ')
    array = write(tmp_path / "c.jsonl", "[1, 2]")
    table = write_parquet(tmp_path / "a.parquet", {"body": ["x"], "id": [1]})
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"id": [1]})}).save_to_disk(str(tmp_path / "saved"))
    saved = str(tmp_path / "saved")
    cases = {
        r"no file matches .*nearest existing name is .*corpus\.txt": lambda: Text(str(tmp_path / "corpsu.txt")),
        r"nearest existing name is .*saved": lambda: Text(str(tmp_path / "saves" / "a" / "b.txt")),
        r"it is a folder, so name the files": lambda: Text(str(tmp_path)),
        r"nothing in .* has a similar name": lambda: Text(str(tmp_path / "qqqqqq")),
        r"empty\.txt' is empty": lambda: Text(str(tmp_path / "*.txt")),
        r"files is empty": lambda: Text([]),
        r"separator is empty": lambda: Text(str(tmp_path / "corpus.txt"), separator=""),
        r"latin\.txt' is not UTF-8": lambda: list(Text(str(tmp_path / "latin.txt")).documents()),
        r"line 1 has no field 'text': set field to one of body, id": lambda: list(JsonLines(rows).documents()),
        r"line 1: field 'id' holds a int": lambda: list(JsonLines(rows, "id").documents()),
        r"b\.jsonl' line 2 is not JSON": lambda: list(JsonLines(broken).documents()),
        r"line 1 holds a list": lambda: list(JsonLines(array).documents()),
        r"no column 'text': set column to one of body, id": lambda: Parquet(table),
        r"column 'id' holds int64": lambda: Parquet(table, "id"),
        r"corpus\.txt' is not a Parquet file": lambda: Parquet(str(tmp_path / "corpus.txt")),
        r"no split 'train': set split to one of test": lambda: HuggingFace(saved),
        r"source\.config = 'x' does not apply": lambda: HuggingFace(saved, config="x"),
        r"no column 'text': set column to one of id": lambda: HuggingFace(saved, split="test"),
        r"column 'id' holds int: name a column of text": lambda: list(
            HuggingFace(saved, split="test", column="id").documents()
        ),
        r"is not a folder: the nearest existing name is .*saved": lambda: HuggingFace(str(tmp_path / "save")),
    }
    for expected, call in cases.items():
        with pytest.raises(ValueError, match=expected) as error:
            call()
        one_line(error)
