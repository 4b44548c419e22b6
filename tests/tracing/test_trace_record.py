"""The JSON form: a round trip, and a damaged file as one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from traces import HOSTILE, long_trace, trace

from dlmkit.tracing.record import Trace, read_trace
from dlmkit.tracing.write import check_path, write_trace


def test_a_round_trip_gives_the_same_record(tmp_path: Path) -> None:
    for one in (trace(), long_trace(2, 20)):
        assert Trace.from_json(one.to_json()) == one
        write_trace(one, tmp_path / "a.json")
        assert read_trace(tmp_path / "a.json") == one
    settings = Trace.from_json(trace().to_json()).settings
    assert settings == {"steps": 3, "temperature": 0.5, "top_k": None}
    assert isinstance(settings["steps"], int)


def test_keys_of_the_json() -> None:
    content = json.loads(trace().to_json())
    assert set(content) == {"model", "sampler", "settings", "seed", "samples", "version"}
    change = content["samples"][0]["steps"][1]["changes"][1]
    assert change["token"] == {"id": 5, "text": HOSTILE}
    assert (change["before"], change["kind"], change["position"]) == (None, "committed", 2)


def first_change(content: Any) -> Any:
    return content["samples"][0]["steps"][0]["changes"][0]


DAMAGE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a key is missing": (lambda c: c.pop("model"), "lacks model"),
    "another key": (lambda c: c.update(extra=1), "unknown key 'extra'"),
    "a wrong type": (lambda c: c.update(seed="7"), "trace.seed is '7'"),
    "a setting that is a list": (lambda c: c["settings"].update(a=[1]), r"trace.settings.a is \[1\]"),
    "another kind": (lambda c: first_change(c).update(kind="lost"), "kind is 'lost'"),
    "a kind that is none": (lambda c: first_change(c).update(kind="replaced"), "does not follow"),
    "another token before": (lambda c: first_change(c).update(before={"id": 1, "text": ""}), "does not follow"),
    "a position outside": (lambda c: first_change(c).update(position=3), "position 3 of 3"),
    "a probability": (lambda c: first_change(c).update(confidence=1.5), r"outside \[0, 1\]"),
    "t": (lambda c: c["samples"][0]["steps"][1].update(t=2), r"steps\[1\] has a wrong"),
    "an order": (lambda c: c["samples"][0]["steps"].reverse(), "wrong index"),
    "lengths": (lambda c: c["samples"][0]["given"].pop(), "2 positions in given and 3"),
    "a version": (lambda c: c.update(version=2), "version 2"),
    "no version": (lambda c: c.pop("version"), "lacks version"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_named(name: str) -> None:
    change, message = DAMAGE[name]
    content = copy.deepcopy(json.loads(trace().to_json()))
    change(content)
    with pytest.raises(ValueError, match=message) as error:
        Trace.from_json(json.dumps(content))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("make it again")


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "7", '{"version": 1}', "[" * 100_000, '{"version": "1"}'])
def test_what_is_no_trace(text: str) -> None:
    with pytest.raises(ValueError, match="make it again"):
        Trace.from_json(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("bytes.json", "missing.json"):
        with pytest.raises(ValueError, match=name) as error:
            read_trace(tmp_path / name)
        assert "\n" not in str(error.value)


def test_the_ending_chooses_the_form(tmp_path: Path) -> None:
    for name in ("a.json", "b.html", "new/c.HTML"):
        write_trace(trace(), tmp_path / name)
    assert (tmp_path / "a.json").read_text().startswith("{")
    assert (tmp_path / "b.html").read_text() == (tmp_path / "new/c.HTML").read_text()
    (tmp_path / "folder.html").mkdir()
    for name in ("a.txt", "a", "folder.html"):
        with pytest.raises(ValueError, match=f"trace file .*{name}"):
            write_trace(trace(), tmp_path / name)
        with pytest.raises(ValueError, match="name"):
            check_path(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be written"):
        write_trace(trace(), tmp_path / "a.json" / "b.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.html", "folder.html", "new"]


def test_half_a_letter_is_written(tmp_path: Path) -> None:
    one = trace()
    one.samples[0] = type(one.samples[0])("\ud800", [], [], [], "\ud800")
    write_trace(one, tmp_path / "a.json")
    assert read_trace(tmp_path / "a.json").samples[0].text == "\ud800"
    write_trace(one, tmp_path / "a.html")
