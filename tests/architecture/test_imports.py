"""Which room may import which, as docs/architecture.md has it: read from the import statements of every file."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PACKAGE = SRC / "dlmkit"
FILES = sorted(path for folder in (PACKAGE, SRC / "hydra_plugins") for path in folder.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports anywhere, functions included; `from a import b` counts as a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def importers(*packages: str) -> set[str]:
    """Files that import any of the packages, relative to src/."""
    return {
        path.relative_to(SRC).as_posix()
        for path in FILES
        if any(name == package or name.startswith(f"{package}.") for name in imports(path) for package in packages)
    }


def outside(files: set[str], *allowed: str) -> set[str]:
    """Those that are neither an allowed file nor in an allowed folder."""
    return {name for name in files if not name.startswith(tuple(f"dlmkit/{place}" for place in allowed))}


def test_nothing_below_the_module_imports_lightning() -> None:
    """Parts can be used without it; data/ has one file with the data module, callbacks/ are Lightning's."""
    allowed = (
        "module.py",
        "build.py",
        "callbacks/",
        "commands/",
        "data/module.py",
        "loggers.py",
        "ranks.py",
        "checkpoints/io.py",
        "strategies/",
        "training/logging.py",
    )
    assert outside(importers("lightning"), *allowed) == set()


def test_corpora_depend_neither_on_lightning_nor_on_a_run() -> None:
    """What the text is (corpora/) is separate from how a run reads it (module.py, order.py)."""
    in_data = {name for name in importers("lightning") if name.startswith("dlmkit/data/")}
    assert in_data == {"dlmkit/data/module.py"}
    users = {name for name in importers("dlmkit.data.module", "dlmkit.data.order") if name.startswith("dlmkit/data/")}
    assert users == {"dlmkit/data/module.py"}


def test_only_entry_points_import_hydra_and_omegaconf() -> None:
    entry_points = ("build.py", "config/", "cli.py", "commands/", "checkpoints/", "inference/")
    files = outside(importers("omegaconf", "hydra"), *entry_points)
    assert {name for name in files if not name.startswith("hydra_plugins/")} == set()


def test_token_parts_import_no_tokenizer() -> None:
    allowed = ("data/", "commands/", "checkpoints/", "inference/", "build.py")
    assert outside(importers("dlmkit.data.tokenizers", "tokenizers", "transformers.AutoTokenizer"), *allowed) == set()


GROUND = {
    *("types", "cache", "parts", "tensors", "prefix", "randomness", "files", "text_hints", "nested", "ranges"),
    *("extras", "weighted"),
}
"""The ground floor, which every room may import."""

PARTS = {
    "schedules",
    "processes",
    "parameterizations",
    "corruption",
    "t_samplers",
    "objectives",
    "backbones",
    "samplers",
}

# room: what of dlmkit its files may import beside themselves and the ground floor
MAY_IMPORT: dict[str, set[str]] = {
    "schedules": set(),
    "processes": {"schedules"},
    "parameterizations": {"processes"},
    "corruption": {"processes"},
    "t_samplers": {"schedules"},
    "objectives": {"parameterizations", "processes"},
    "backbones": {"notices", "unfused"},
    "samplers": {"parameterizations", "processes"},
    "step.py": {"objectives", "processes"},
    "unfused.py": set(),
    "requests.py": set(),
    "generation.py": {"backbones", "processes", "requests", "samplers"},
    "evaluation": {"corruption", "generation", "objectives", "parameterizations", "processes", "samplers", "step"},
    "compatibility.py": PARTS,
    "laws": {*PARTS, "compatibility", "evaluation", "generation", "unfused"},
    "training": {*PARTS, "module"},
    "planning": {*PARTS, "step", "training"},
    "module.py": {*PARTS, "evaluation", "ranks", "step", "training"},
    "data": {"notices", "ranks", "trust"},
    "ranks.py": set(),
    "notices.py": {"ranks"},
    "trust.py": set(),
    "report": {"runs", "notices", "__version__"},
    "runs": set(),
    "renames.py": set(),
    "loggers.py": set(),
    "config": {"renames"},
    "tracing": {"__version__", "generation"},
}
GROUND_FLOOR: dict[str, set[str]] = {
    "cache.py": set(),
    "weighted.py": set(),
    "types.py": {"cache", "weighted"},
    "randomness.py": set(),
    "tensors.py": set(),
    "files.py": set(),
    "text_hints.py": set(),
    "nested.py": set(),
    "ranges.py": set(),
    "rates.py": set(),
    "extras.py": set(),
    "parts.py": {"types"},
    "prefix.py": {"types"},
    "unfused.py": {"types"},
}
ABOVE = {"__init__.py", "build.py", "callbacks", "checkpoints", "cli.py", "commands", "inference", "strategies"}
"""Entry points and what joins all rooms."""


def own_imports(path: Path) -> set[str]:
    """The rooms of dlmkit that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("dlmkit.")}


def files_in(room: str) -> list[Path]:
    return [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))


def test_every_room_has_a_rule() -> None:
    rooms = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms == {*MAY_IMPORT, *GROUND_FLOOR, *ABOVE}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_those_below_them(room: str) -> None:
    for path in files_in(room):
        assert own_imports(path) <= MAY_IMPORT[room] | GROUND | {room.removesuffix(".py")}, path


@pytest.mark.parametrize("room", GROUND_FLOOR)
def test_the_ground_floor_needs_torch_alone(room: str) -> None:
    (path,) = files_in(room)
    assert own_imports(path) <= GROUND_FLOOR[room]
    others = {name.partition(".")[0] for name in imports(path)} - {"dlmkit", "torch", "__future__"}
    assert others <= sys.stdlib_module_names


def test_generation_depends_on_interfaces_alone() -> None:
    """Any network and any sampler: their base classes are all that it imports of them."""
    of_parts = {
        name for name in imports(PACKAGE / "generation.py") if name.split(".")[1:2] and name.split(".")[1] in PARTS
    }
    assert {name.split(".")[2] for name in of_parts} == {"base"}


def test_evaluation_noises_tokens_independently_whatever_the_corruption() -> None:
    for path in files_in("evaluation"):
        of_corruption = {name for name in imports(path) if name.startswith("dlmkit.corruption.")}
        assert of_corruption <= {"dlmkit.corruption.base.corrupt_sequences"}, path


def test_samplers_depend_neither_on_objectives_nor_on_the_loop() -> None:
    assert not {name for name in importers("dlmkit.objectives", "dlmkit.generation") if "/samplers/" in name}


def test_parts_do_not_import_their_laws() -> None:
    assert outside(importers("dlmkit.laws"), "laws/", "commands/") == set()


def test_nothing_below_the_module_imports_it() -> None:
    allowed = ("__init__.py", "build.py", "callbacks/", "checkpoints/", "commands/", "strategies/")
    assert outside(importers("dlmkit.module"), *allowed) == set()


def test_the_package_does_not_import_its_users() -> None:
    assert importers("experiments", "benchmarks", "tests") == set()


def test_errors_are_caught_by_name() -> None:
    """Only the command line catches everything, to turn it into a line or raise it again; the tokenizers library raises
    plain exceptions."""
    broad = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {""}
                if caught & {"", "Exception", "BaseException"}:
                    broad.add(path.relative_to(PACKAGE).as_posix())
    assert broad == {"cli.py", "data/tokenizers/damaged.py"}


def test_the_module_stays_small() -> None:
    assert len((PACKAGE / "module.py").read_text().splitlines()) <= 270


@pytest.mark.parametrize("group", sorted(PARTS - {"backbones"}))
def test_plug_ins_stay_small(group: str) -> None:
    for path in {*(PACKAGE / group).glob("*.py")} - {PACKAGE / group / "base.py"}:  # the interface is no plug-in
        assert len(path.read_text().splitlines()) <= 200, path


def fresh(code: str) -> tuple[set[str], float]:
    """Run code in a new process; return the top-level modules that it loaded, and the seconds that it took."""
    report = f"{code}\nimport sys; print(' '.join({{name.partition('.')[0] for name in sys.modules}}), file=sys.stderr)"
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split()), time.perf_counter() - begin


HEAVY = {"torch", "lightning", "transformers", "hydra", "omegaconf", "datasets", "numpy"}


def test_import_is_quick() -> None:
    modules, _ = fresh("import dlmkit")
    assert modules & HEAVY == set()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["train", "--help"], ["sample", "--help"], ["check", "--help"], ["plan", "--help"]],
)
def test_help_is_quick(arguments: list[str]) -> None:
    code = f"from dlmkit.cli import main\ntry: main({arguments})\nexcept SystemExit as stop: assert stop.code == 0"
    modules, seconds = fresh(code)
    assert modules & HEAVY == set()
    assert seconds < 1.0 or min(fresh(code)[1] for _ in range(5)) < 1.0  # a busy machine gets more tries


def test_parts_do_not_load_lightning() -> None:
    """The rule above, for what a script imports that trains, samples or checks without Lightning."""
    names = ["schedules.linear", "processes.absorbing", "objectives.masked", "samplers.ancestral", "backbones.dit"]
    names += ["corruption.complementary", "step", "generation", "compatibility", "evaluation.nelbo", "laws.pairing"]
    names += ["planning.plan", "planning.show", "planning.pretrained"]
    names += [f"data.corpora.{name}" for name in ("text", "mixture", "pairs", "markov")]
    modules, _ = fresh("".join(f"import dlmkit.{name}\n" for name in names))
    assert "torch" in modules
    assert modules & {"lightning", "hydra", "omegaconf"} == set()
