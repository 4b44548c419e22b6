"""Who may know whom, as design.md has it: read from the import statements of every file."""

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


def test_lightning_stays_at_the_top() -> None:
    """Parts can be used without it; data/ has one file with the data module, callbacks/ are Lightning's."""
    allowed = ("module.py", "build.py", "callbacks/", "commands/", "data/module.py", "loggers.py", "ranks.py")
    assert outside(importers("lightning"), *allowed) == set()


def test_corpora_know_neither_lightning_nor_a_run() -> None:
    """What the text is (corpora/) stands apart from how a run reads it (module.py, order.py)."""
    in_data = {name for name in importers("lightning") if name.startswith("dlmkit/data/")}
    assert in_data == {"dlmkit/data/module.py"}
    users = {name for name in importers("dlmkit.data.module", "dlmkit.data.order") if name.startswith("dlmkit/data/")}
    assert users == {"dlmkit/data/module.py"}


def test_only_entry_points_know_the_configuration() -> None:
    files = outside(importers("omegaconf", "hydra"), "build.py", "config/", "cli.py", "commands/", "checkpoints/")
    assert {name for name in files if not name.startswith("hydra_plugins/")} == set()


def test_token_parts_know_no_tokenizer() -> None:
    allowed = ("data/", "commands/", "checkpoints/", "build.py")
    assert outside(importers("dlmkit.data.tokenizers", "tokenizers", "transformers.AutoTokenizer"), *allowed) == set()


# folder: what of dlmkit its files may import; a folder is itself, and EVERYBODY may import the rooms of that name.
EVERYBODY = {"types", "randomness", "files", "text_hints", "nested", "ranks"}
MAY_IMPORT = {
    "schedules": {"schedules"},
    "processes": {"processes", "schedules"},
    "objectives": {"objectives", "processes", "schedules"},
    "t_samplers": {"t_samplers", "schedules"},
    "samplers": {"samplers", "processes"},
    "backbones": {"backbones"},
    "evaluation": {"evaluation", "objectives", "processes", "noising"},
    "data": {"data"},
    "laws": {"laws", "schedules", "processes", "objectives", "t_samplers", "samplers", "backbones"},
    "noising.py": {"processes"},
    "lr_schedules.py": set(),
    "runs": {"runs"},
    "report": {"report", "runs", "__version__"},
    "renames.py": set(),
    "types.py": set(),
    "randomness.py": set(),
    "files.py": set(),
    "text_hints.py": set(),
    "nested.py": set(),
    "ranks.py": set(),
}


@pytest.mark.parametrize("place", MAY_IMPORT)
def test_parts_know_only_what_is_below_them(place: str) -> None:
    files = [path for path in FILES if path.relative_to(SRC).as_posix().startswith(f"dlmkit/{place}")]
    assert files
    for path in files:
        own = {name.split(".")[1] for name in imports(path) if name.startswith("dlmkit.")}
        assert own <= MAY_IMPORT[place] | EVERYBODY, path


def test_parts_do_not_know_their_laws() -> None:
    assert outside(importers("dlmkit.laws"), "laws/", "commands/") == set()


def test_nothing_below_the_module_imports_it() -> None:
    assert outside(importers("dlmkit.module"), "build.py", "budget.py", "callbacks/", "commands/") == set()


def test_the_package_does_not_know_its_users() -> None:
    assert importers("experiments", "benchmarks", "tests") == set()


def test_errors_are_caught_by_name() -> None:
    """Only the command line catches everything, to turn it into a line or raise it again."""
    broad = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {""}
                if caught & {"", "Exception", "BaseException"}:
                    broad.add(path.relative_to(PACKAGE).as_posix())
    assert broad == {"cli.py"}


def test_the_module_stays_small() -> None:
    assert len((PACKAGE / "module.py").read_text().splitlines()) <= 180


@pytest.mark.parametrize("group", ["schedules", "processes", "objectives", "t_samplers", "samplers"])
def test_plug_ins_stay_small(group: str) -> None:
    for path in (PACKAGE / group).glob("*.py"):
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
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["sample", "--help"], ["check", "--help"]]
)
def test_help_is_quick(arguments: list[str]) -> None:
    code = f"from dlmkit.cli import main\ntry: main({arguments})\nexcept SystemExit as stop: assert stop.code == 0"
    modules, seconds = fresh(code)
    assert modules & HEAVY == set()
    assert seconds < 1.0 or min(fresh(code)[1] for _ in range(5)) < 1.0  # a busy machine gets more tries


def test_parts_do_not_load_lightning() -> None:
    """The rule above, as it comes out: the parts of a sampling script, imported."""
    names = ["schedules.linear", "processes.absorbing", "objectives.masked", "samplers.ancestral", "backbones.dit"]
    names += [f"data.corpora.{name}" for name in ("text", "mixture", "pairs", "markov")]
    modules, _ = fresh("".join(f"import dlmkit.{name}\n" for name in names))
    assert "torch" in modules
    assert modules & {"lightning", "hydra", "omegaconf"} == set()
