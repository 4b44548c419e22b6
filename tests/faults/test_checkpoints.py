"""Checkpoints hold what they were given, show any damage, run no code, and are never half written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from damage import PAYLOAD, flip_bit, pickled, truncate, zero
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from dlmkit.checkpoints.container import DTYPES, read, read_without_tensors, write
from dlmkit.checkpoints.verify import check, newest_whole
from toy_runs import (
    MODEL,
    SMALL,
    TOKENS,
    dlmkit,
    same_end,
    stop_at,
    text_corpus,
    text_data,
    train,
    trained,
)

FILE = Path("a.ckpt")
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
keys = st.text() | st.integers() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner) | st.lists(inner).map(tuple),
    max_leaves=20,
)


@given(content=st.dictionaries(st.text(), values))
@settings(max_examples=200, deadline=None)
def test_what_is_no_tensor_comes_back(content) -> None:
    write(FILE, content)
    assert read(FILE) == content
    assert read_without_tensors(FILE) == content


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_come_back_to_the_bit(dtype: torch.dtype) -> None:
    bits = torch.randint(256, (5, 3, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if dtype == torch.bool:
        bits = bits % 2
    tensor = bits.view(dtype)
    content = {"whole": tensor, "turned": tensor.transpose(0, 1), "part": tensor[1:, ::2], "none": tensor[:0]}
    content |= {"number": tensor[0, 0, 0], "list": [(tensor[3], 1)]}
    write(FILE, content)
    back = read(FILE)
    for name in ("whole", "turned", "part", "none", "number"):
        assert back[name].dtype == dtype
        assert back[name].shape == content[name].shape
        assert bytes_of(back[name]) == bytes_of(content[name])
    assert bytes_of(back["list"][0][0]) == bytes_of(tensor[3])
    assert back["list"][0][1] == 1


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_tied_weights_are_stored_once_and_come_back_tied() -> None:
    weight = torch.arange(3000.0)
    write(FILE, {"state_dict": {"embedding": weight, "head": weight, "copy": weight.clone()}})
    assert FILE.stat().st_size < 3 * 12000
    state = read(FILE)["state_dict"]
    assert state["embedding"] is state["head"]
    assert state["copy"] is not state["head"]
    assert all(torch.equal(one, weight) for one in state.values())


def test_names_that_meet_stay_apart() -> None:
    content = {"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1), "checksum": torch.full((1,), 2.0)}
    write(FILE, content)
    back = read(FILE)
    assert [back["a"]["b"].item(), back["a/b"].item(), back["checksum"].item()] == [1.0, 0.0, 2.0]


def test_any_reader_of_safetensors_opens_it() -> None:
    write(FILE, {"state_dict": {"w": torch.eye(3)}, "step": 3})
    with safe_open(FILE, framework="pt") as tensors:
        assert torch.equal(tensors.get_tensor("state_dict/w"), torch.eye(3))


@pytest.mark.parametrize(
    ("value", "kind"), [({1, 2}, "set"), (torch.nn.Linear(1, 1), "Linear"), (Path("x"), "Path"), (b"x", "bytes")]
)
def test_what_cannot_be_stored_is_named(value, kind: str) -> None:
    if kind == "Path":
        kind = type(value).__name__
    with pytest.raises(ValueError, match=rf"parts\.objective\.scale is a {kind}, .*state_dict"):
        write(FILE, {"parts": {"objective": {"scale": value}}})
    assert not FILE.exists()


def test_every_flipped_bit_and_every_missing_byte_shows() -> None:
    write(FILE, {"state_dict": {"w": torch.arange(4.0)}, "step": 1})
    whole = FILE.read_bytes()
    for place in range(len(whole)):
        flip_bit(FILE, place, bit=place % 8)
        with pytest.raises(ValueError, match=r"a\.ckpt is (damaged|a pickle)"):
            read(FILE)
        FILE.write_bytes(whole[:place])
        with pytest.raises(ValueError, match=r"a\.ckpt is (damaged|a pickle)"):
            read(FILE)
        FILE.write_bytes(whole)
    check(FILE)


def test_pickles_are_refused_and_not_run() -> None:
    for number, content in enumerate((pickled(), b"")):
        FILE.write_bytes(content)
        if not content:
            torch.save({"state_dict": {}}, FILE)
        for reader in (read, check, lambda file: newest_whole([file])):
            with pytest.raises(ValueError, match=r"a\.ckpt is a pickle.*can run code"):
                reader(FILE)
        assert not PAYLOAD.exists(), number


def test_a_file_of_somebody_else_is_no_checkpoint() -> None:
    """Its checksum may fit and its content still be foreign, or nested too deeply to read."""
    for state in (
        "[" * 100_000,
        '{"dict": [[{"dict": []}, 1]]}',
        '{"a": 1, "b": 2}',
        '{"tensor": "absent"}',
        "[1]",
        "{",
    ):
        header = json.dumps({"__metadata__": {"format": "dlmkit checkpoint 1", "state": state}}).encode()
        content = len(header).to_bytes(8, "little") + header
        FILE.write_bytes(content + hashlib.sha256(content).digest())
        with pytest.raises(ValueError, match=r"a\.ckpt is no checkpoint"):
            read(FILE)


def test_no_file_is_read_as_a_pickle() -> None:
    """torch.load is called in one place, for weights in the format of old releases, and told to run no code."""
    source = Path(__file__).parents[2] / "src"
    calls = [
        (path.name, line.strip())
        for path in source.rglob("*.py")
        for line in path.read_text().splitlines()
        if "weights_only=False" in line or "torch.load(" in line or "import pickle" in line
    ]
    assert [name for name, _ in calls] == ["released.py"]
    assert "weights_only=True" in calls[0][1]


# Runs ------------------------------------------------------------------------------------------------------------

KEPT = ["callbacks.checkpoint.save_top_k=-1"]


@pytest.fixture
def interrupted() -> Path:
    """A run of 8 steps with checkpoints at 2 and 4, stopped after its fifth step."""
    assert train("run", *KEPT, stop_at(5), steps=8).code == 130
    return Path("run")


@pytest.mark.parametrize("damage", ["a bit of the weights", "a bit of the state", "zeros", "truncated", "empty"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(interrupted: Path, damage: str) -> None:
    whole = trained("whole", *KEPT, steps=8)
    newest = interrupted / "checkpoints/step=4.ckpt"
    size = newest.stat().st_size
    {
        "a bit of the weights": lambda: flip_bit(newest, size // 2, bit=3),
        "a bit of the state": lambda: flip_bit(newest, newest.read_bytes().index(b"global_step") + 20),
        "zeros": lambda: zero(newest, size // 2),
        "truncated": lambda: truncate(newest, size - 1000),
        "empty": lambda: truncate(newest, 0),
    }[damage]()
    outcome = train("run", *KEPT, "if_exists=resume", steps=8)
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "step=4.ckpt is damaged" in line]
    assert line.endswith("step=2.ckpt")
    assert same_end(interrupted, whole)
    check(newest)  # made again


def test_where_all_are_damaged_nothing_is_touched(interrupted: Path) -> None:
    for file in (interrupted / "checkpoints").iterdir():
        flip_bit(file, -1)
    before = {path: path.read_bytes() for path in interrupted.rglob("*.*") if path.is_file()}
    outcome = train("run", *KEPT, "if_exists=resume", steps=8)
    assert outcome.code == 2
    line = outcome.err.splitlines()[-1]  # behind one on the callback that stopped the first run
    assert "step=4.ckpt is damaged" in line
    assert "step=2.ckpt is damaged" in line
    assert "if_exists=overwrite" in line
    assert {path: path.read_bytes() for path in interrupted.rglob("*.*") if path.is_file()} == before


def test_a_pickle_in_the_place_of_a_checkpoint_is_refused(interrupted: Path) -> None:
    (interrupted / "checkpoints/last.ckpt").write_bytes(pickled())
    outcome = train("run", *KEPT, "if_exists=resume", steps=8)
    assert (outcome.code, "last.ckpt is a pickle" in outcome.err.splitlines()[-1]) == (2, True)
    assert not PAYLOAD.exists()


def test_damage_is_named_wherever_a_checkpoint_is_read() -> None:
    text = [*MODEL, *SMALL, *text_data(text_corpus(Path("text.txt"))), f"budget.tokens={2 * TOKENS}"]
    outcome = dlmkit("train", *text, "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    run = Path("run")
    flip_bit(run / "checkpoints/last.ckpt", -2000)
    line = f"{run}/checkpoints/last.ckpt is damaged"
    for command in (["sample", "run"], ["export", "run", "out"]):
        outcome = dlmkit(*command)
        assert (outcome.code, line in outcome.line) == (2, True), outcome.err
    outcome = dlmkit("train", *text, "hydra.run.dir=next", "init_from=run")
    assert (outcome.code, line in outcome.line) == (2, True), outcome.err
    assert not Path("out").exists()
    assert dlmkit("sample", str(run / "checkpoints/step=2.ckpt"), "--steps", "2").code == 0
