"""Checkpoints in shards are whole or not there, show any damage, run no code, and name nothing outside their folder."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from dlmkit.checkpoints import shards
from dlmkit.checkpoints.container import write
from dlmkit.checkpoints.shards import read_whole
from dlmkit.checkpoints.verify import newest_whole, remove_orphans

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
FILE = Path("step=4.ckpt")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def content(scale: float = 1.0) -> dict:
    weight = scale * torch.arange(6.0).view(3, 2)
    group = {"params": ["a"], "lr": 0.1, "betas": (0.9, 0.95)}
    state = {"a": {"step": torch.tensor(3.0), "exp_avg": sharded(weight + 1)}}
    optimizer = {"state": state, "param_groups": [group]}
    return {"state_dict": {"a": sharded(weight), "b": torch.ones(2)}, "optimizer_states": [optimizer], "global_step": 4}


def sharded(tensor: torch.Tensor) -> DTensor:
    return distribute_tensor(tensor, init_device_mesh("cpu", (1,)), [Shard(0)])


def shard() -> Path:
    (file,) = Path().glob("step=4.shards-*/00000.safetensors")
    return file


def test_what_was_saved_comes_back_and_the_optimizer_is_numbered() -> None:
    shards.save(FILE, content())
    back = read_whole(FILE)
    assert back["global_step"] == 4
    assert torch.equal(back["state_dict"]["a"], torch.arange(6.0).view(3, 2))
    assert torch.equal(back["state_dict"]["b"], torch.ones(2))
    (optimizer,) = back["optimizer_states"]
    assert optimizer["param_groups"] == [{"params": [0], "lr": 0.1, "betas": (0.9, 0.95)}]
    assert torch.equal(optimizer["state"][0]["exp_avg"], torch.arange(6.0).view(3, 2) + 1)
    assert set(back) == {"state_dict", "optimizer_states", "global_step"}


def test_a_later_save_takes_the_place_of_one() -> None:
    shards.save(FILE, content())
    shards.save(FILE, content(scale=2.0))
    assert torch.equal(read_whole(FILE)["state_dict"]["a"], 2 * torch.arange(6.0).view(3, 2))
    shard()  # one folder alone
    shards.remove(FILE)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("place", ["rest", "ema"])
def test_a_save_that_fails_leaves_the_one_before(place: str) -> None:
    shards.save(FILE, content())
    broken = {**content(scale=2.0), "callbacks": {"x": {1, 2} if place == "rest" else sharded(torch.ones(2))}}
    with pytest.raises(ValueError, match="is a set" if place == "rest" else "leave callbacks=ema out"):
        shards.save(FILE, broken)
    assert torch.equal(read_whole(FILE)["state_dict"]["a"], torch.arange(6.0).view(3, 2))
    shard()


def test_a_save_that_was_killed_leaves_a_folder_that_is_deleted() -> None:
    shards.save(FILE, content())
    orphan = Path(f"step=6.shards-{32 * '0'}")
    shutil.copytree(shard().parent, orphan)
    other = Path("my.shards-and-more")
    other.mkdir()
    remove_orphans(Path())
    assert (orphan.exists(), other.exists(), shard().exists()) == (False, True, True)


@pytest.mark.parametrize("damage", ["bit", "missing", "of another save", "pickle"])
def test_damage_of_a_shard_is_damage_of_the_checkpoint(damage: str) -> None:
    shards.save(Path("step=2.ckpt"), content())
    shards.save(FILE, content())
    if damage == "bit":
        raw = bytearray(shard().read_bytes())
        raw[len(raw) // 2] ^= 1
        shard().write_bytes(raw)
    elif damage == "missing":
        shutil.rmtree(shard().parent)
    elif damage == "of another save":  # whole in itself
        write(shard(), {"a@0,0": torch.zeros(3, 2)})
    else:
        shard().write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match=r"step=4\.ckpt is damaged"):
        read_whole(FILE)
    newest = newest_whole(list(Path().glob("*.ckpt")))
    assert newest.file == Path("step=2.ckpt")
    assert newest.damaged == ["step=4.ckpt is damaged"]


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "x/00000.safetensors"])
def test_shards_lie_beside_their_checkpoint(name: str) -> None:
    """A checkpoint of somebody else, whose checksums fit."""
    Path("x").mkdir()
    checksum = write(Path("x/00000.safetensors"), {}).hex()
    write(FILE, {"state_dict": {}, "sharded": []}, shards={name: checksum})
    with pytest.raises(ValueError, match="damaged"):
        read_whole(FILE)


@pytest.mark.parametrize("plain", [1, [[1]], [[["state_dict", "a"], [2], "load", []]], [[["a"], [2], "float32", [1]]]])
def test_a_list_of_somebody_else_is_no_checkpoint(plain: object) -> None:
    folder = f"step=4.shards-{32 * '0'}"
    checksum = write(Path(folder) / "00000.safetensors", {}).hex()
    write(FILE, {"sharded": plain}, shards={f"{folder}/00000.safetensors": checksum})
    with pytest.raises(ValueError, match="no checkpoint of this version"):
        read_whole(FILE)
