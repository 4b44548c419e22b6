"""The record of a run: written whole, read back equal, and refused in one line when a run did not write it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlmkit.runs import STATUSES, RunSummary
from dlmkit.runs.summary import ADDED_LATER
from toy_summaries import toy_summary

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("status", STATUSES)
def test_what_is_written_is_read(tmp_path: Path, status: Any) -> None:
    run = tmp_path / "deep" / "run"
    assert RunSummary.read(run) is None
    toy_summary(status="running", val_nll=None).write(run)
    toy_summary(status=status, name="Psalm ψ").write(run)
    assert RunSummary.read(run) == toy_summary(status=status, name="Psalm ψ")
    assert [path.name for path in run.iterdir()] == ["summary.json"]


def test_a_run_that_diverged_is_read(tmp_path: Path) -> None:
    toy_summary(val_nll=math.nan, val_nll_stderr=math.inf).write(tmp_path)
    found = RunSummary.read(tmp_path)
    assert found is not None
    assert math.isnan(found.val_nll or 0.0)


def test_records_of_earlier_releases_are_read(tmp_path: Path) -> None:
    content = toy_summary().to_dict()
    old = {key: value for key, value in content.items() if key not in ADDED_LATER}
    (tmp_path / "summary.json").write_text(json.dumps({**old, "removed_since": 1}))
    assert RunSummary.read(tmp_path) == toy_summary(**dict.fromkeys(ADDED_LATER))


NO_RECORD = {
    "no JSON": ("{", "is not valid JSON"),
    "no text": (b"\xff\xfe", "is not UTF-8 text"),
    "list": ("[]", "holds no JSON object"),
    "text": ('"done"', "holds no JSON object"),
    "nothing": ("{}", "lacks experiment, name, family and 29 more keys"),
    "another program's": ('{"status": "finished", "loss": 3.0}', "lacks experiment"),
}


@pytest.mark.parametrize("case", NO_RECORD)
def test_what_is_no_record_is_refused(tmp_path: Path, case: str) -> None:
    content, message = NO_RECORD[case]
    file = tmp_path / "summary.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(tmp_path, message)


WRONG = {
    "text for a number": ({"val_nll": "low"}, "has val_nll 'low', which must be a number or null"),
    "truth value for a number": ({"seed": True}, "has seed True, which must be a whole number"),
    "fraction for a count": ({"params": 1.5}, "has params 1.5, which must be a whole number"),
    "number for a text": ({"name": 3}, "has name 3, which must be text"),
    "null for a text": ({"objective": None}, "has objective None, which must be text"),
    "list for a text": ({"schedule": ["linear"]}, "has schedule ['linear'], which must be text or null"),
    "number for a truth value": ({"nll_is_exact": 1}, "has nll_is_exact 1, which must be true or false"),
    "unknown status": ({"status": "done"}, "has status 'done', which must be running, finished, failed, interrupted"),
    "list for a status": ({"status": ["finished"]}, "has status ['finished']"),
    "finished without a result": ({"val_nll": None}, "has val_nll null in a finished run"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_of_another_type_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = WRONG[case]
    (tmp_path / "summary.json").write_text(json.dumps({**toy_summary().to_dict(), **changes}))
    assert_refused(tmp_path, message)


def assert_refused(run: Path, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        RunSummary.read(run)
    assert str(run / "summary.json") in str(error.value)
    assert str(error.value).endswith("train that run again, or move its folder away")
    assert "\n" not in str(error.value)


def test_whole_numbers_stand_for_fractions(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({**toy_summary().to_dict(), "total_flops": 3}))
    found = RunSummary.read(tmp_path)
    assert found is not None
    assert found.total_flops == 3


def test_every_field_is_documented() -> None:
    """In the class, and in the table of docs/architecture.md."""
    fields = [field.name for field in dataclasses.fields(RunSummary)]
    assert re.findall(r"^        (\w+): ", str(RunSummary.__doc__), re.MULTILINE) == fields
    table = PAGE.split("`summary.json`:", 1)[1].split("\n\n", 2)[1]
    cells = [row.split("|")[1] for row in table.splitlines()[2:]]
    named = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    assert sorted(named) == sorted(fields)


def test_the_record_needs_no_torch() -> None:
    code = "import sys, dlmkit.runs; sys.exit(bool({'torch', 'hydra', 'lightning'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
