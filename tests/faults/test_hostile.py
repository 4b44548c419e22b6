"""What somebody else may have written is read without running anything of theirs, and stays within its folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from damage import PAYLOAD, pickled
from omegaconf import OmegaConf

import dlmkit as package
from toy_runs import MODEL, SMALL, TOKENS, dlmkit, text_corpus, text_data

OWN_PARTS = """
from pathlib import Path
from dlmkit.data.tokenizers.bytes import Bytes
from dlmkit.samplers.ancestral import Ancestral

Path("payload-ran").touch()

class Mine(Ancestral):
    pass

class MyBytes(Bytes):
    pass
"""
QUICK = ["--steps", "2"]


@pytest.fixture
def run() -> Path:
    """A finished run on text."""
    text = text_data(text_corpus(Path("text.txt"), documents=200))
    outcome = dlmkit("train", *MODEL, *SMALL, *text, f"budget.tokens={TOKENS}", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    return Path("run")


@pytest.fixture
def exported(run: Path) -> Path:
    assert dlmkit("export", "run", "out").code == 0
    return Path("out")


@pytest.fixture
def my_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's; importing it leaves a trace."""
    (tmp_path / "my_parts.py").write_text(OWN_PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_parts"
    sys.modules.pop("my_parts", None)


def change(file: Path, key: str, value: object) -> None:
    config = OmegaConf.load(file)
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    OmegaConf.save(config, file)


TARGETS = {
    "a function that loads a pickle": {"_target_": "torch.load", "f": "evil.bin", "weights_only": False},
    "a command": {"_target_": "os.system", "command": f"touch {PAYLOAD}"},
    "a path through a module of the kit": {"_target_": "dlmkit.files.os.system", "command": f"touch {PAYLOAD}"},
    "a function of the kit": {"_target_": "dlmkit.files.write_text", "path": str(PAYLOAD), "text": "x"},
    "no part": {"_target_": "dlmkit.requests.Request"},
    "a method": {"_target_": "hydra.utils.get_method", "path": "os.system"},
    "a name that begins alike": {"_target_": "dlmkit_in_order.x.Y"},
    "no text": {"_target_": 3},
    "no name": {"_target_": "dlmkit..x"},
    "absent": {"_target_": "dlmkit.samplers.absent.Absent"},
}


@pytest.mark.parametrize("section", ["backbone", "process", "objective", "sampler"])
@pytest.mark.parametrize("kind", ["run", "out"])
def test_a_folder_names_only_parts_of_the_kit(exported: Path, kind: str, section: str) -> None:
    Path("evil.bin").write_bytes(pickled())
    file = Path(kind) / {"run": "config.yaml", "out": "dlmkit.yaml"}[kind]
    whole = file.read_text()
    for name, node in TARGETS.items():
        change(file, section, node)
        outcome = dlmkit("sample", kind)
        assert outcome.code == 2, name
        assert f"{section} names {node['_target_']!r}".replace("'", "") in outcome.line.replace("'", ""), name
        assert not PAYLOAD.exists(), name
        file.write_text(whole)


def test_a_part_inside_a_part_is_checked(run: Path) -> None:
    change(run / "config.yaml", "process.schedule", TARGETS["a command"])
    outcome = dlmkit("export", "run", "elsewhere")
    assert (outcome.code, "names os.system" in outcome.line, "--trust os" in outcome.line) == (2, True, True)
    change(run / "config.yaml", "process.schedule", [[{"deep": TARGETS["a command"]}]])
    outcome = dlmkit("sample", "run")
    assert (outcome.code, "names os.system" in outcome.line) == (2, True)
    assert not PAYLOAD.exists()


def test_an_interpolation_cannot_bring_in_another_target(run: Path) -> None:
    """Resolved once more when a part is built, an escaped one would become what was not checked."""
    file = run / "config.yaml"
    change(file, "evil", TARGETS["a command"])
    change(file, "sampler", "${evil}")
    outcome = dlmkit("sample", "run")
    assert (outcome.code, "names os.system" in outcome.line) == (2, True)
    text = file.read_text().replace("${evil}", "\\${evil}")
    file.write_text(text)
    assert dlmkit("sample", "run").code == 2
    change(file, "sampler", {"_target_": "dlmkit.samplers.ancestral.Ancestral", "top_k": "ESCAPED"})
    file.write_text(file.read_text().replace("ESCAPED", "\\${evil}"))
    outcome = dlmkit("sample", "run")
    assert (outcome.code, "an interpolation" in outcome.line) == (2, True)
    assert not PAYLOAD.exists()


def test_own_parts_are_used_when_they_are_named(exported: Path, my_parts: str) -> None:
    for folder, file in (("run", "config.yaml"), ("out", "dlmkit.yaml")):
        change(Path(folder) / file, "sampler._target_", "my_parts.Mine")
        for trust in ([], ["--trust", "my"], ["--trust", "my_parts.Other"]):
            outcome = dlmkit("sample", folder, *QUICK, *trust)
            assert (outcome.code, "my_parts.Mine" in outcome.line) == (2, True), outcome.err
            assert "--trust my_parts" in outcome.line
            assert not PAYLOAD.exists()
    for trust in ("my_parts", "my_parts.Mine"):
        outcome = dlmkit("sample", "run", *QUICK, "--trust", "other", "--trust", trust)
        assert outcome.code == 0, outcome.err
    assert PAYLOAD.exists()
    assert type(package.load("out", trust=("my_parts",)).sampler).__name__ == "Mine"
    outcome = dlmkit("export", "run", "again", "--trust", "my_parts")
    assert outcome.code == 0, outcome.err


def test_a_tokenizer_is_the_kits_or_named(exported: Path, my_parts: str) -> None:
    for file in (Path("run/tokenizer/dlmkit_tokenizer.json"), Path("out/dlmkit_tokenizer.json")):
        content = json.loads(file.read_text())
        for module, name in (("my_parts", "MyBytes"), ("subprocess", "Popen"), ("dlmkit.files", "write_text")):
            file.write_text(json.dumps({**content, "module": module, "class": name}))
            outcome = dlmkit("sample", file.parts[0])
            assert (outcome.code, f"{module}.{name}" in outcome.line) == (2, True), outcome.err
            assert not PAYLOAD.exists()
        file.write_text(json.dumps({**content, "module": "my_parts", "class": "MyBytes"}))
    for folder in ("run", "out"):
        outcome = dlmkit("sample", folder, *QUICK, "--trust", "my_parts")
        assert outcome.code == 0, outcome.err
        assert PAYLOAD.exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", '{"module": 1, "class": [], "state": 2}', "\xff", "[" * 100_000]
)
def test_a_damaged_tokenizer_file_is_named(run: Path, content: str) -> None:
    (run / "tokenizer/dlmkit_tokenizer.json").write_bytes(content.encode("latin-1"))
    outcome = dlmkit("sample", "run")
    assert (outcome.code, "dlmkit_tokenizer.json" in outcome.line) == (2, True), outcome.err


@pytest.mark.parametrize(
    "content",
    ["", "]", "- 1", "a: [", "backbone: 3", "backbone: {}", "x: ${y}", "x: !!python/object/apply:os.getcwd []"],
)
def test_a_damaged_configuration_is_named(exported: Path, content: str) -> None:
    for file in (Path("run/config.yaml"), Path("out/dlmkit.yaml")):
        file.write_text(content)
        outcome = dlmkit("sample", file.parts[0])
        assert (outcome.code, str(file) in outcome.line) == (2, True), outcome.err


def test_a_pickle_is_no_checkpoint(run: Path) -> None:
    (run / "checkpoints/last.ckpt").write_bytes(pickled())
    outcome = dlmkit("sample", "run")
    assert (outcome.code, "last.ckpt is a pickle" in outcome.line) == (2, True)
    assert not PAYLOAD.exists()


# Hugging Face folders -----------------------------------------------------------------------------------------------


def test_a_folder_has_its_own_weights(exported: Path) -> None:
    """Whatever model dlmkit.yaml names: the weights are those beside it."""
    change(exported / "dlmkit.yaml", "backbone.name", "../elsewhere")
    outcome = dlmkit("sample", "out", *QUICK)
    assert outcome.code == 0, outcome.err


def test_shards_lie_in_their_folder(exported: Path) -> None:
    for shard in ("../run/model.safetensors", "/etc/passwd", "sub/model.safetensors", ".."):
        (exported / "model.safetensors").rename("kept")
        (exported / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": {"transformer.wte.weight": shard}})
        )
        for command in (["sample", "out"], ["import", "out", "new"]):
            outcome = dlmkit(*command)
            assert (outcome.code, f"names {shard!r}" in outcome.line) == (2, True), outcome.err
        Path("kept").rename(exported / "model.safetensors")
    for content in ("[]", "{", '{"weight_map": 3}'):
        (exported / "model.safetensors.index.json").write_text(content)
        outcome = dlmkit("sample", "out")
        assert (outcome.code, "index.json is damaged" in outcome.line) == (2, True), outcome.err


def test_an_adapter_does_not_bring_in_another_model(exported: Path) -> None:
    (exported / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../run"}))
    outcome = dlmkit("sample", "out")
    assert (outcome.code, "out holds an adapter" in outcome.line) == (2, True), outcome.err


def test_weights_in_a_pickle_do_not_run(exported: Path) -> None:
    (exported / "model.safetensors").unlink()
    (exported / "pytorch_model.bin").write_bytes(pickled())
    torch.save({"x": torch.ones(1)}, "plain.bin")
    for command in (["sample", "out"], ["import", "out", "new"]):
        outcome = dlmkit(*command)
        assert outcome.code == 2, outcome.err
        assert outcome.line
        assert not PAYLOAD.exists()


REMOTE = 'from pathlib import Path\nPath("payload-ran").touch()\n'


def test_code_beside_a_model_is_not_run(exported: Path) -> None:
    (exported / "own.py").write_text(REMOTE)
    config = json.loads((exported / "config.json").read_text())
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.T", "own.T"]}
    (exported / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
    outcome = dlmkit("sample", "out", *QUICK)  # a type that transformers has: its own class is used
    assert outcome.code == 0, outcome.err
    (exported / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto_map}))
    outcome = dlmkit("sample", "out", *QUICK)
    assert (outcome.code, "code that comes with a model is not run" in outcome.line) == (2, True), outcome.err
    (exported / "dlmkit.yaml").unlink()
    (exported / "dlmkit_tokenizer.json").unlink()
    (exported / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T", "auto_map": auto_map}))
    assert dlmkit("sample", "out", *QUICK).code == 2
    assert not PAYLOAD.exists()


def test_remote_code_is_never_asked_for() -> None:
    """Every place that reads a model or a tokenizer by name says that its code stays out."""
    source = Path(__file__).parents[2] / "src"
    for path in source.rglob("*.py"):
        calls = path.read_text().split(".from_pretrained(")[1:]
        for call in calls:
            shown = path.name == "convert.py"  # a line for the user to copy
            assert shown or "trust_remote_code=False" in call.split("\n    except")[0], path
