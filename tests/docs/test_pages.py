"""The pages name files that exist and commands, keys and columns that are there."""

from __future__ import annotations

import ast
import csv
import itertools
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dlmkit import cli, config
from dlmkit.build import build_module
from dlmkit.commands import train

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "experiments").glob("*/README.md")),
]
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
COMMANDS = sorted(
    {
        line.strip().removeprefix("$ ")
        for page, text in TEXTS.items()
        for line in text.splitlines()
        if re.match(r"^(    |\$ )dlmkit ", line) and page.name != "extending.md"  # which has a test of its own
    }
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = [link for link in LINK.findall(TEXTS[page]) if "://" not in link and not link.startswith("#")]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


def test_the_two_commands_stand_in_the_readme():
    lines = [line.strip() for line in TEXTS[ROOT / "README.md"].splitlines()]
    assert "python -m pip install tox && tox run -e demo" in lines
    assert "python -m pip install tox && tox" in lines
    assert "python -m pip install tox && tox" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_there_are_commands_of_every_kind():
    every = {"train", "report", "sample", "check", "export", "import", "doctor", "plan"}
    assert {command.split()[1] for command in COMMANDS} == every


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, tmp_path, monkeypatch):
    options, rest = cli.build_parser().parse_known_args(shlex.split(command)[1:])
    if options.command not in cli.TAKE_SETTINGS:
        assert not rest
        return
    if "experiment=mine" in rest:  # docs/data.md shows the file
        shutil.copytree(ROOT / "conf", tmp_path / "conf")
        _write_files(TEXTS[ROOT / "docs" / "data.md"], tmp_path)
        (tmp_path / "experiments" / "mine.yaml").rename(tmp_path / "conf" / "experiment" / "mine.yaml")
        monkeypatch.setattr(config.composition, "conf_dir", lambda: tmp_path / "conf")
    swept = options.command == "train" and options.multirun
    values = [_values(override, swept) for override in rest]
    for overrides in itertools.islice(itertools.product(*values), 4):
        composed = config.compose(list(overrides), tmp_path / "run")
        config.check_overrides(composed, overrides)
        composed.vocab = {"size": 64, "mask_id": 63, "bos_id": 62, "eos_id": 62}
        if composed.backbone.get("name") is None:  # a pretrained model is not at hand here
            build_module(composed, bytes_per_token=None)  # everything but the data
        for override in overrides:
            key, _, value = override.partition("=")
            if not (ROOT / "conf" / key).is_dir():
                assert (
                    str(OmegaConf.select(composed, key)) in (value.replace("_", ""), value.strip("'\"")) or "[" in value
                )


def _values(override: str, swept: bool) -> list[str]:
    key, _, value = override.partition("=")
    return [f"{key}={one}" for one in value.split(",")] if swept and "[" not in value else [override]


def _write_files(text: str, folder: Path) -> None:
    for name, body in re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(body, encoding="utf-8")


def test_a_file_of_ones_own_trains(tmp_path, monkeypatch):
    """The experiment that docs/data.md shows, on a book of its kind."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    _write_files(TEXTS[ROOT / "docs" / "data.md"], tmp_path)
    (tmp_path / "experiments" / "mine.yaml").rename(tmp_path / "conf" / "experiment" / "mine.yaml")
    for module in (config, config.composition, train):
        monkeypatch.setattr(module, "conf_dir", lambda: tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text("\n\n".join(f"Chapter {i}. " + "words and more " * 20 for i in range(40)))
    changes = ["tokenizer=bytes", "backbone=dit_tiny", "length=32", "budget.tokens=512", "data.val_fraction=0.3"]
    quick = ["lr_schedule.warmup_steps=1", "validation.num_times=1", "callbacks.samples.num_steps=1"]
    assert cli.main(["train", "experiment=mine", *changes, *quick, "trainer.accelerator=cpu"]) == 0
    (summary,) = [json.loads(file.read_text()) for file in tmp_path.glob("runs/mine/*/summary.json")]
    assert (summary["data"], summary["status"]) == ("text", "finished")
    assert summary["val_bpb"] is not None


# docs/architecture.md


ARCHITECTURE = TEXTS[ROOT / "docs" / "architecture.md"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of two steps with everything that a run can log."""
    folder = tmp_path_factory.mktemp("architecture")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number in range(20):
            Path(f"{number}.txt").write_text(f"Text number {number}. " + "More of it. " * 20)
        changes = ["data=text", "data.source.files='*.txt'", "data.val_fraction=0.3"]
        changes += ["tokenizer=bytes", "backbone=dit_tiny", "length=32"]
        quick = ["budget.tokens=1024", "lr_schedule.warmup_steps=1", "callbacks.samples.num_steps=1"]
        quick += ["validation.every_steps=1", "validation.num_times=1", "trainer.log_every_n_steps=1"]
        quick += ["callbacks=[throughput,samples,lr,checkpoint,annealing]", "callbacks.throughput.window_size=2"]
        assert cli.main(["train", *changes, *quick, "trainer.accelerator=cpu"]) == 0
    (found,) = folder.glob("runs/single/*")
    return found


def _table(heading: str) -> str:
    """The first table after a line of the page."""
    return re.search(r"^\|.*?(?=\n\n)", ARCHITECTURE.split(heading, 1)[1], re.MULTILINE | re.DOTALL)[0]


def _first_cells(table: str) -> set[str]:
    rows = table.splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_run_folder_has_what_the_page_says(run):
    names = _first_cells(_table("## Run folders"))
    for name in names:
        pattern = name.replace("step_NNNNNNN", "step_*").rstrip("/")
        assert list(run.glob(pattern)), f"no {name}"
    assert {path.name for path in run.iterdir()} == {name.partition("/")[0] for name in names}
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["last.ckpt", "step=2.ckpt"]
    (record, *_) = [json.loads(file.read_text()) for file in run.glob("samples/*.json")]
    assert set(record) == {"step", "sampler", "num_steps", "samples"}
    assert set(record["samples"][0]) == {"prompt", "text"}


def test_metrics_have_the_columns_of_the_page(run):
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    named = set(re.findall(r"`([^`]+)`", ARCHITECTURE.split("`metrics.csv` has", 1)[1].split("\n\n", 1)[0]))
    named = {f"train/device/{name}" if f"train/device/{name}" in rows[0] else name for name in named}
    named = {"lr-AdamW/pg2" if name == "pg2" else name for name in named}
    assert named - {"metrics.csv"} <= set(rows[0])
    counters = {f"train/{name}" for name in ("time", "batches", "samples", "lengths")}
    assert set(rows[0]) - named == {"epoch", *counters}
    assert [row["step"] for row in rows if row["val/nll"]][-1] == "2"


def test_rooms_of_the_page_are_there():
    for name in _first_cells(_table("## Rooms")):
        assert any((place / name).exists() for place in (ROOT, ROOT / "src" / "dlmkit")), name


COUPLED = ("schedules", "processes", "objectives", "t_samplers", "backbones", "samplers")


def _imports(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def _reaches(names: set[str], *packages: str) -> set[str]:
    return {name for name in names if name.startswith(tuple(f"{package}." for package in packages)) or name in packages}


def test_rooms_stay_apart():
    source = ROOT / "src" / "dlmkit"
    entry_points = {source / "build.py", source / "cli.py", *source.rglob("commands/**/*"), *source.glob("config/*")}
    for file in source.rglob("*.py"):
        names, room = _imports(file), file.relative_to(source).parts[0]
        if file not in entry_points and room not in ("checkpoints", "inference"):
            assert not _reaches(names, "hydra", "omegaconf"), file
        if room in COUPLED:
            assert not _reaches(names, "lightning", "tokenizers", "dlmkit.data"), file
        if room == "samplers":
            assert not _reaches(names, "dlmkit.objectives", "dlmkit.module"), file
        if room == "report":
            assert not _reaches(names, "torch", "lightning"), file
